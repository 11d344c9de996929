"""A shop on a vending that is killed: its tills keep what was acknowledged and repeat the rest."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio

from services.common.kernel import names
from services.common.kernel.ids import name_uuid
from tests.recovery.workers import DEADLINE_S, Worker, until
from tools.stack.ports import free_ports
from wattvend.vending.v1 import vending_pb2 as pb
from wattvend.vending.v1 import vending_pb2_grpc

NANO_PER_MINOR = 10**7
AMOUNT_MINOR_MAX = 50_000
AGAIN_S = 0.02
CLERK = "clerk"
ENERGY = "electricity"
NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""CANCELLED, though nobody cancelled: the call reached a server that had begun to stop."""
RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
]


class Sale(NamedTuple):
    """What a till asks for, under one request id."""

    request_id: str
    account_id: str
    amount_minor: int

    def message(self) -> pb.SellRequest:
        """Return it as it is asked for."""
        return pb.SellRequest(
            request_id=self.request_id,
            name=names.ACCOUNT.name(self.account_id),
            amount_minor=self.amount_minor,
            method="cash",
        )


@dataclass
class Till:
    """One who sells. `asked`: each sale → the answers it got; no answer: not acknowledged."""

    name: str
    accounts: Sequence[str]
    asked: dict[Sale, list[pb.SellResponse]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.name)

    @property
    def acknowledged(self) -> int:
        return sum(bool(answers) for answers in self.asked.values())

    @property
    def unanswered(self) -> set[tuple[str, str]]:
        """(caller, request id) of what was asked and not answered."""
        return {(self.name, sale.request_id) for sale, got in self.asked.items() if not got}

    def next_sale(self) -> Sale:
        request_id = str(name_uuid("sale", self.name, len(self.asked)))
        account_id = self._random.choice(self.accounts)
        return Sale(request_id, account_id, self._random.randint(1, AMOUNT_MINOR_MAX))

    async def sell(self, stub: Any, sale: Sale) -> None:
        """Ask until it is answered, also through kills: the same request every time."""
        answers = self.asked.setdefault(sale, [])
        answers.append(await answered(stub.Sell, sale.message(), self.name))

    async def sell_on(self, stub: Any, closing: asyncio.Event) -> None:
        """Sell one after the other until the shop closes, and the last one a second time."""
        while not closing.is_set():
            sale = self.next_sale()
            await self.sell(stub, sale)
        if self.asked:
            await self.sell(stub, list(self.asked)[-1])


def called_by(name: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call."""
    return (("wattvend-caller", name),)


async def answered(method: Any, message: Any, caller: str) -> Any:
    """Call until vending answers; while it is away the call waits."""
    metadata = called_by(caller)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await method(
                    message, metadata=metadata, timeout=DEADLINE_S, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as failed:
                if failed.code() not in NO_ANSWER:
                    raise
            await asyncio.sleep(AGAIN_S)


@dataclass
class Shop:
    """A vending process, its store, and clients of it."""

    bootstrap: str
    directory: Path
    checkpoint_interval_ms: int = 200
    instance: str = "vending-0"
    store: str = ""
    """The address of a book that does not stand in the file `path`."""
    grpc_port: int = field(default_factory=lambda: free_ports(1)[0])

    def __post_init__(self) -> None:
        self.worker = self.process()

    @property
    def path(self) -> Path:
        return self.directory / "events.sqlite"

    def without_checkpoints(self) -> None:
        """Let the relay write none but at a stop."""
        self.checkpoint_interval_ms = 60_000
        self.worker = self.process()

    def is_checkpointed(self) -> bool:
        """Say whether the relay has kept a checkpoint of all that is stored."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as file:
            newest = (
                "SELECT (SELECT max(position) FROM event), (SELECT max(position) FROM checkpoint)"
            )
            ((stored, kept),) = file.execute(newest).fetchall()
        return bool(stored == kept)

    def process(self, name: str = "", grpc_port: int = 0) -> Worker:
        """Return a process on the shop's store that is not started."""
        settings = {
            "KAFKA_BOOTSTRAP": self.bootstrap,
            "STORE": self.store,
            "STORE_PATH": str(self.path),
            "GRPC_PORT": str(grpc_port or self.grpc_port),
            "CHECKPOINT_INTERVAL_MS": str(self.checkpoint_interval_ms),
        }
        return Worker("vending", settings, self.directory, self.instance, name)

    @asynccontextmanager
    async def stub(self, grpc_port: int = 0) -> AsyncIterator[Any]:
        address = f"127.0.0.1:{grpc_port or self.grpc_port}"
        async with grpc.aio.insecure_channel(address, options=RECONNECT) as channel:
            yield vending_pb2_grpc.VendingServiceStub(channel)

    async def ask(self, method: str, message: Any) -> Any:
        """Ask as the shop's clerk."""
        async with self.stub() as stub:
            return await answered(getattr(stub, method), message, CLERK)

    async def furnish(self, accounts: Iterable[str], meter: str = "") -> None:
        """Register a site, publish terms, open accounts."""
        for method, message in _terms(meter):
            await self.ask(method, message)
        async with self.stub() as stub:
            await asyncio.gather(
                *(answered(stub.OpenAccount, _account(name), CLERK) for name in accounts)
            )

    @asynccontextmanager
    async def selling(self, tills: Sequence[Till]) -> AsyncIterator[None]:
        """Let the tills sell; at the end each has its last answer."""
        closing = asyncio.Event()
        async with self.stub() as stub, asyncio.TaskGroup() as group:
            for till in tills:
                group.create_task(till.sell_on(stub, closing))
            yield
            closing.set()

    async def credited(self, tills: Iterable[Till]) -> dict[str, int]:
        """Return what vending says of each account that the tills sell to, in nano."""
        accounts = sorted({name for till in tills for name in till.accounts})
        async with self.stub() as stub:
            found = await asyncio.gather(
                *(
                    answered(
                        stub.GetAccount, pb.GetAccountRequest(name=names.ACCOUNT.name(name)), CLERK
                    )
                    for name in accounts
                )
            )
        return {names.ACCOUNT.id("name", account.name): account.credited_nano for account in found}


def request_id(*what: object) -> str:
    """Return the request id of something that the clerk asks for once."""
    return str(name_uuid("clerk", *what))


def _terms(meter: str) -> list[tuple[str, Any]]:
    site = pb.RegisterSiteRequest(
        request_id=request_id("site"),
        site_id="S1",
        display_name="Mall",
        zone="Asia/Shanghai",
        currency="CNY",
        legal_entity="legalEntities/LE1",
        cuts_per_minute=10,
    )
    tariff = pb.PublishTariffRequest(
        request_id=request_id("tariff"),
        name="tariffs/T1",
        commodity=ENERGY,
        currency="CNY",
        legal_entity="legalEntities/LE1",
        price_micro=800_000,
    )
    policy = pb.PublishPolicyRequest(
        request_id=request_id("policy"),
        name="policies/P1",
        currency="CNY",
        legal_entity="legalEntities/LE1",
        alarm_1_minor=1000,
        alarm_2_minor=500,
        restore_minor=100,
    )
    gateway = pb.RegisterGatewayRequest(
        request_id=request_id("gateway"),
        gateway_id="G1",
        site="sites/S1",
        protocol="modbus-tcp",
        address="127.0.0.1:502",
    )
    terms = [
        ("RegisterSite", site),
        ("RegisterGateway", gateway),
        ("PublishTariff", tariff),
        ("PublishPolicy", policy),
    ]
    return [*terms, ("RegisterMeter", _meter(meter))] if meter else terms


def _meter(name: str) -> pb.RegisterMeterRequest:
    return pb.RegisterMeterRequest(
        request_id=request_id("meter", name),
        meter_id=name,
        serial=f"serial-{name}",
        gateway="gateways/G1",
        unit=1,
        profile="acrel-ddsy1352",
        commodity=ENERGY,
        ratio=1,
    )


def _account(name: str) -> pb.OpenAccountRequest:
    return pb.OpenAccountRequest(
        request_id=request_id("account", name),
        account_id=name,
        site="sites/S1",
        commodity=ENERGY,
        tariff="tariffs/T1",
        policy="policies/P1",
    )


async def until_sold(tills: Sequence[Till], more: int) -> None:
    """Return when the tills have got that many more receipts."""
    enough = sum(till.acknowledged for till in tills) + more
    await until(
        lambda: sum(till.acknowledged for till in tills) >= enough, f"{more} more sales are made"
    )
