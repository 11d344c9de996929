"""Goal: what vending answers is durable, published in the right order, and settled on echoes.

Method: the real service on the real Kafka, asked over gRPC; the test reads every topic that vending
writes and plays metering where vending listens (`charges`, `echoes`). Each test has a store of its
own, whose book epoch it raises first, because the cluster remembers the checkpoints of others.
"""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc.aio
import numpy as np
import orjson
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.kernel import names
from services.common.kernel.frames import CHARGE, ChargeFrame
from services.common.kernel.ids import column_key
from services.common.runtime import codec, kafka, topics
from services.vending.main import main
from tests.conftest import RunService
from tools.stack import keyfile
from tools.stack.background import BackgroundStack, RunningService
from tools.stack.ports import free_ports
from wattvend.vending.v1 import vending_pb2 as pb
from wattvend.vending.v1 import vending_pb2_grpc

pytestmark = pytest.mark.stack

DEADLINE_S = 20.0
CALLER = (("wattvend-caller", "test"), ("wattvend-actor", "u-81"))
ENERGY = "electricity"
NOT_USED = ("surcharge_nano", "ladder_nano", "fees_nano", "tax_nano", "undivided_nano")
DETAILS_KEY = "grpc-status-details-bin"


@pytest.fixture(scope="module")
def _topics(stack: BackgroundStack) -> None:
    asyncio.run(topics.create(stack.kafka_bootstrap))


@dataclass
class Vending:
    """A vending process, and the names that this test alone uses."""

    stack: BackgroundStack
    run: RunService
    store: Path
    port: int
    suffix: str
    service: RunningService | None = None

    @property
    def settings(self) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP": self.stack.kafka_bootstrap,
            "STORE_PATH": str(self.store),
            "GRPC_PORT": str(self.port),
            "CHECKPOINT_INTERVAL_MS": "100",
            "SIGNING_KEY": str(keyfile.made(self.store.with_name("signing.pem"))),
        }

    def start(self) -> None:
        self.service = self.run("vending", self.settings)

    def command(
        self, name: str, arguments: Sequence[str] = (), **more: str
    ) -> subprocess.CompletedProcess[str]:
        settings = self.settings | more
        environment = {f"WATTVEND_VENDING_{key}": value for key, value in settings.items()}
        return subprocess.run(
            [sys.executable, "-m", "services.vending", name, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def id(self, name: str) -> str:
        return f"{name}-{self.suffix}"


@pytest.fixture
def vending(
    stack: BackgroundStack,
    run_service: RunService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    _topics: None,
) -> Vending:
    """Return a running vending; its book is empty, its word above that of earlier tests."""
    (port,) = free_ports(1)
    made = Vending(stack, run_service, tmp_path / "events.sqlite", port, uuid4().hex[:8])
    with monkeypatch.context() as environment:
        for key, value in made.settings.items():
            environment.setenv(f"WATTVEND_VENDING_{key}", value)
        assert main(["raise-book-epoch"]) == 0  # in this process: a second less
    made.start()
    return made


@asynccontextmanager
async def stub_of(vending: Vending) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel:
        yield vending_pb2_grpc.VendingServiceStub(channel)


async def call(method: Any, message: Any, request_id: str | None = None) -> Any:
    if "request_id" in message.DESCRIPTOR.fields_by_name:
        message.request_id = request_id or str(uuid4())
    return await method(message, metadata=CALLER, timeout=DEADLINE_S)


async def refusal(work: Awaitable[Any]) -> tuple[grpc.StatusCode, str, str]:
    """Return code, reason and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await work
    error = failed.value
    metadata: Any = error.trailing_metadata()
    details = metadata.get(DETAILS_KEY)
    if details is None:
        return error.code(), "", error.details() or ""
    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info), error
    assert info.domain == "wattvend"
    return error.code(), info.reason, error.details() or ""


async def site_with_account(stub: Any, vending: Vending, first_sale_minor: int = 0) -> None:
    name = vending.id
    await call(
        stub.RegisterSite,
        pb.RegisterSiteRequest(
            site_id=name("S"),
            display_name="Mall",
            zone="Asia/Shanghai",
            currency="CNY",
            legal_entity="legalEntities/LE1",
            cuts_per_minute=10,
        ),
    )
    await call(
        stub.RegisterGateway,
        pb.RegisterGatewayRequest(
            gateway_id=name("G"),
            site=names.SITE.name(name("S")),
            protocol="modbus-tcp",
            address="127.0.0.1:502",
        ),
    )
    await call(
        stub.RegisterMeter,
        pb.RegisterMeterRequest(
            meter_id=name("M"),
            serial=vending.suffix,
            gateway=names.GATEWAY.name(name("G")),
            unit=1,
            profile="acrel-ddsy1352",
            commodity=ENERGY,
            ratio=1,
        ),
    )
    await call(
        stub.PublishTariff,
        pb.PublishTariffRequest(
            name=names.TARIFF.name(name("T")),
            commodity=ENERGY,
            currency="CNY",
            legal_entity="legalEntities/LE1",
            price_micro=800_000,
        ),
    )
    await call(
        stub.PublishPolicy,
        pb.PublishPolicyRequest(
            name=names.POLICY.name(name("P")),
            currency="CNY",
            legal_entity="legalEntities/LE1",
            alarm_1_minor=1000,
            alarm_2_minor=500,
            restore_minor=100,
        ),
    )
    await call(
        stub.OpenAccount,
        pb.OpenAccountRequest(
            account_id=name("A"),
            site=names.SITE.name(name("S")),
            subject_id="person-1",
            commodity=ENERGY,
            tariff=names.TARIFF.name(name("T")),
            policy=names.POLICY.name(name("P")),
            first_sale_minor=first_sale_minor,
            method="cash",
        ),
    )


async def records_of(vending: Vending, topic: str) -> list[tuple[ConsumerRecord, Any, dict]]:
    """Return what stands in a topic of this test's names: record, envelope, value."""
    reader = kafka.consumer(vending.stack.kafka_bootstrap, client_id="test")
    await reader.start()
    try:
        count = topics.catalogue().partitions_of(topic)
        partitions = [TopicPartition(topic, number) for number in range(count)]
        reader.assign(partitions)
        await reader.seek_to_beginning(*partitions)
        found = []
        async for record in kafka.read_to_end(reader, partitions):
            envelope, value = kafka.opened(record)
            if vending.suffix in repr(value):
                found.append((record, envelope, value))
        return found
    finally:
        await reader.stop()


async def eventually(look: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first true answer of `look`; fail after the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found := await look()):
            await asyncio.sleep(0.05)
    return found


async def all_published(vending: Vending, events: int) -> list[tuple[ConsumerRecord, Any, dict]]:
    """Return the ledger when the facts of its `events` events stand in the registry."""

    async def look() -> Any:
        ledger = await records_of(vending, "ledger")
        caused = {envelope.causation_id for _, envelope, _ in await records_of(vending, "registry")}
        ids = {str(envelope.event_id) for _, envelope, _ in ledger}
        return ledger if len(ids) == events and ids <= caused else None

    return await eventually(look)


async def publish(vending: Vending, sends: Sequence[tuple[str, str, dict[str, Any], int]]) -> None:
    """Play metering: send (topic, subject, record, partition)."""
    producer = kafka.producer(vending.stack.kafka_bootstrap, client_id="test")
    await producer.start()
    try:
        for topic, subject, record, partition in sends:
            acknowledged = await kafka.send(
                producer,
                topic,
                subject,
                record,
                key=str(partition),
                partition=partition,
                event_id=uuid4(),
                occurred_at_ms=1,
            )
            await acknowledged
    finally:
        await producer.stop()


async def test_everything_is_published_facts_before_routes_and_tariffs_before_accounts(
    vending: Vending,
) -> None:
    name = vending.id
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending, first_sale_minor=1_000)
        meter = await call(
            stub.AssignMeter,
            pb.AssignMeterRequest(
                name=names.METER.name(name("M")),
                account=names.ACCOUNT.name(name("A")),
                register_milli=4_000,
            ),
        )
        account = await call(
            stub.GetAccount, pb.GetAccountRequest(name=names.ACCOUNT.name(name("A")))
        )
    assert (meter.epoch, meter.account, meter.shard) == (
        2,
        names.ACCOUNT.name(name("A")),
        account.shard,
    )
    assert [m.meter for m in account.meters] == [names.METER.name(name("M"))]

    ledger = await all_published(vending, events=9)
    by_stream: dict[str, list[int]] = {}
    for _, envelope, value in sorted(ledger, key=lambda one: one[2]["position"]):
        by_stream.setdefault(value["stream"], []).append(value["revision"])
        data = codec.decode(f"{value['type']}/{value['data_version']}", value["data"])
        assert data["request_id"] == value["request_id"]
        assert UUID(value["event_id"]) == envelope.event_id
        origin = orjson.loads(value["meta"])["origin"]
        assert origin == {"caller": "test", "actor": "u-81", "peer": "127.0.0.1"}
    assert by_stream[f"account-{name('A')}"] == [0, 1, 2]
    assert by_stream[f"meter-{name('M')}"] == [0, 1]

    log = await records_of(vending, "shard-log")
    shards = range(topics.catalogue().shards)
    for subject in ("site-fact", "tariff-fact", "policy-fact"):
        assert {r.partition for r, e, _ in log if e.subject == subject} == set(shards)
    in_shard = [(e.subject, v) for r, e, v in log if r.partition == account.shard]
    subjects = [subject for subject, _ in in_shard]
    assert subjects.index("tariff-fact") < subjects.index("account-fact")
    assert subjects.index("account-fact") < max(
        n for n, s in enumerate(subjects) if s == "meter-fact"
    )
    facts = [v for s, v in in_shard if s == "account-fact"]
    assert [fact["revision"] for fact in facts] == [0, 1, 2]
    assert [fact["credited_nano"] for fact in facts] == [0, 10**10, 10**10]
    entered = [v for s, v in in_shard if s == "meter-fact"][-1]
    assert entered["opening_register_milli"] == entered["closing_register_milli"] == 4_000
    assert (entered["epoch"], entered["previous_epoch"]) == (2, 1)
    told = [(r.partition, v) for r, e, v in log if e.subject == "meter-fact"]
    assert {shard for shard, v in told if v["revision"] == 0} == set(shards), "in a raised epoch"
    left = [v for shard, v in told if shard == entered["previous_shard"]]
    if entered["previous_shard"] != account.shard:
        assert left[-1] == entered
        assert left[0]["opening_register_milli"] is None

    registry = await records_of(vending, "registry")
    assert {(record.key or b"").decode() for record, _, _ in registry} == {
        f"sites/{name('S')}",
        f"gateways/{name('G')}",
        f"meters/{name('M')}",
        f"tariffs/{name('T')}/1",
        f"policies/{name('P')}",
        f"accounts/{name('A')}",
    }
    times = {e.event_id: r.timestamp for r, e, _ in log}
    assert all(
        r.timestamp >= times[e.event_id] - 1000 for r, e, _ in registry if e.event_id in times
    )


async def test_orders_reach_the_shard_and_the_registry_as_the_newest_facts(
    vending: Vending,
) -> None:
    name = vending.id
    reading_id, notice_id = str(uuid4()), str(uuid4())
    until_ms = time.time_ns() // 1_000_000 + 3_600_000
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
        of_meter: list[tuple[Any, Any]] = [
            (
                stub.AssignMeter,
                pb.AssignMeterRequest(account=names.ACCOUNT.name(name("A")), register_milli=4_000),
            ),
            (
                stub.ReplaceMeter,
                pb.ReplaceMeterRequest(
                    closing_register_milli=5_000,
                    opening_register_milli=7,
                    serial=vending.suffix[::-1] + "-new",
                    reason="display dead",
                ),
            ),
            (
                stub.ChangeRatio,
                pb.ChangeRatioRequest(ratio=80, register_milli=9, reason="new transformers"),
            ),
            (
                stub.ResolveReading,
                pb.ResolveReadingRequest(
                    reading_id=reading_id, resolution="reject", reason="spike on the line"
                ),
            ),
            (stub.ForceRelay, pb.ForceRelayRequest(position="off", reason="works")),
        ]
        for method, message in of_meter:
            message.name = names.METER.name(name("M"))
            meter = await call(method, message)
        of_account: list[tuple[Any, Any]] = [
            (stub.KeepPower, pb.KeepPowerRequest(until_ms=until_ms, reason="lift")),
            (stub.PromisePayment, pb.PromisePaymentRequest(until_ms=until_ms, reason="half paid")),
            (stub.RecordNotice, pb.RecordNoticeRequest(notice_id=notice_id, outcome="delivered")),
        ]
        for method, message in of_account:
            message.name = names.ACCOUNT.name(name("A"))
            account = await call(method, message)
        ended = pb.KeepPowerRequest(
            name=names.ACCOUNT.name(name("A")), until_ms=1, reason="too late"
        )
        code, reason, _ = await refusal(call(stub.KeepPower, ended))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UNTIL_OUT_OF_RANGE")
    assert (meter.epoch, meter.ratio, meter.forced) == (4, 80, "off")
    assert (account.keep_power_until_ms, account.notice_outcome) == (until_ms, "delivered")

    await all_published(vending, events=15)
    log = await records_of(vending, "shard-log")
    here = [(e.subject, v) for r, e, v in log if r.partition == account.shard]
    told = [v for subject, v in here if subject == "meter-fact" and v["epoch"] > 1]
    registers = [(v["closing_register_milli"], v["opening_register_milli"]) for v in told]
    assert registers == [(4_000, 4_000), (5_000, 7), (9, 9), (9, 9), (9, 9)]
    assert (told[-1]["resolves_reading_id"], told[-1]["resolution"]) == (reading_id, "reject")
    assert (told[-1]["forced"], told[-1]["ratio"], told[-1]["previous_epoch"]) == ("off", 80, 3)
    of_a = [v for subject, v in here if subject == "account-fact"][-1]
    assert of_a["keep_power_until_ms"] == of_a["promise_until_ms"] == until_ms
    assert (of_a["notice_id"], of_a["notice_outcome"]) == (notice_id, "delivered")
    newest = {(r.key or b"").decode(): v for r, _, v in await records_of(vending, "registry")}
    assert newest[f"meters/{name('M')}"] == told[-1]
    assert newest[f"accounts/{name('A')}"] == of_a


async def test_a_restart_publishes_again_from_the_checkpoint_the_same_records(
    vending: Vending,
) -> None:
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
    before = await all_published(vending, events=6)
    service = vending.service
    assert service is not None
    service.kill9()
    service.start()
    request_id = str(uuid4())
    async with stub_of(vending) as stub:
        sale = pb.SellRequest(
            name=names.ACCOUNT.name(vending.id("A")), amount_minor=500, method="qr"
        )
        first = await call(stub.Sell, sale, request_id)
        service.kill9()
        service.start()
        async with stub_of(vending) as again:
            assert await call(again.Sell, sale, request_id) == first
    after = await all_published(vending, events=7)
    values = {e.event_id: v for _, e, v in before}
    for _, envelope, value in after:
        assert values.get(envelope.event_id, value) == value, "published again, and another"


async def test_the_last_register_charged_opens_the_next_account_also_after_a_restart(
    vending: Vending,
) -> None:
    name = vending.id
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
        assign = pb.AssignMeterRequest(
            name=names.METER.name(name("M")), account=names.ACCOUNT.name(name("A"))
        )
        code, reason, _ = await refusal(call(stub.AssignMeter, assign))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_READING_YET")
        meter = await call(stub.GetMeter, pb.GetMeterRequest(name=names.METER.name(name("M"))))
    rows = np.zeros(2, CHARGE)
    rows["from_quality"] = rows["to_quality"] = ord("A")
    rows["meter_key"] = column_key("meter", name("M"))
    rows["epoch"] = 1
    rows["sequence"] = (1, 2)
    rows["to_register_milli"] = (70_000, 71_500)
    frame = ChargeFrame(meter.shard, 7, ("",), rows).to_record()
    await publish(vending, [("charges", "charge-frame", frame, meter.shard)])

    async with stub_of(vending) as stub:

        async def assigned() -> Any:
            try:
                return await call(stub.AssignMeter, assign)
            except grpc.aio.AioRpcError:
                return None

        meter = await eventually(assigned)
        assert (meter.epoch, meter.opening_register_milli) == (2, 71_500)
        release = pb.ReleaseMeterRequest(name=names.METER.name(name("M")))
        _, reason, _ = await refusal(call(stub.ReleaseMeter, release))
        assert reason == "NO_READING_YET", "the charges of another epoch say nothing of this one"


def echo(hold: dict[str, Any], charged_nano: int) -> dict[str, Any]:
    return {
        "account_id": hold["account_id"],
        "account_revision": hold["revision"],
        "book_epoch": hold["book_epoch"],
        "hold_id": hold["hold_id"],
        "credited_nano": hold["credited_nano"],
        "charged_nano": charged_nano,
        "account_sequence": 5,
        "open_meters": 0,
        "last_reading_received_at_ms": None,
        "decided_at_ms": 1,
        "log_offset": 1,
        "currency": hold["currency"],
        "legal_entity": hold["legal_entity"],
        "commodity": hold["commodity"],
        "ask_id": None,
        "energy_nano": charged_nano,
        **dict.fromkeys(NOT_USED, 0),
        "meters": [],
        "row": b"its row",
        "frozen": False,
        "waiting": [],
    }


async def hold_of(vending: Vending, status: str = "closing") -> dict[str, Any]:
    """Return the newest account-fact that holds, of an account of that status."""

    async def look() -> Any:
        log = await records_of(vending, "shard-log")
        facts = [v for _, e, v in log if e.subject == "account-fact"]
        return facts[-1] if facts and facts[-1]["hold_id"] else None

    found: dict[str, Any] = await eventually(look)
    assert found["status"] == status
    return found


async def test_an_account_closes_on_the_echo_that_shows_nothing_left(vending: Vending) -> None:
    name = vending.id
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending, first_sale_minor=100)
        close = pb.CloseAccountRequest(name=names.ACCOUNT.name(name("A")))
        first_id = str(uuid4())
        asked = asyncio.create_task(refusal(call(stub.CloseAccount, close, first_id)))
        hold = await hold_of(vending)
        await publish(vending, [("echoes", "echo", echo(hold, 1), hold["shard"])])
        code, reason, message = await asked
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ACCOUNT_HAS_BALANCE")
        assert "0.999999999 CNY" in message
        assert await refusal(call(stub.CloseAccount, close, first_id)) == (code, reason, message)
        opened = await call(
            stub.GetAccount, pb.GetAccountRequest(name=names.ACCOUNT.name(name("A")))
        )
        assert opened.status == "open"

        second_id = str(uuid4())
        message_2 = pb.CloseAccountRequest(name=names.ACCOUNT.name(name("A")), request_id=second_id)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.CloseAccount(message_2, metadata=CALLER, timeout=1.0)
        assert late.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "same request_id" in (late.value.details() or "")
        service = vending.service
        assert service is not None
        service.kill9()
    hold = await hold_of(vending)
    await publish(vending, [("echoes", "echo", echo(hold, 10**9), hold["shard"])])
    service.start()
    async with stub_of(vending) as stub:
        closed = await call(stub.CloseAccount, close, second_id)
        assert closed.status == "closed"
        sale = pb.SellRequest(name=names.ACCOUNT.name(name("A")), amount_minor=500, method="qr")
        _, reason, _ = await refusal(call(stub.Sell, sale))
        assert reason == "ACCOUNT_NOT_OPEN"


async def test_what_was_used_is_asked_for_and_posted_once_though_vending_is_killed(
    vending: Vending,
) -> None:
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending, first_sale_minor=100)
    service = vending.service
    assert service is not None
    service.kill9()  # the day's round was through before there was an account: it begins anew
    service.start()

    async def asked() -> Any:
        log = await records_of(vending, "shard-log")
        said = {envelope.subject: (record.partition, value) for record, envelope, value in log}
        return "usage-ask" in said and (said["account-fact"][1], *said["usage-ask"])

    async def posted() -> list[Any]:
        ledger = [value for _, _, value in await records_of(vending, "ledger")]
        used = {e["event_id"]: e for e in ledger if e["type"] == "usage-posted"}
        return list(used.values())

    fact, shard, ask = await eventually(asked)
    assert (fact["account_id"], fact["shard"]) == (ask["account_id"], shard)
    told = echo(fact | {"hold_id": ""}, 4 * 10**8) | {"ask_id": ask["ask_id"]}
    await publish(vending, [("echoes", "echo", told, shard)] * 2)
    (first,) = await eventually(posted)
    assert first["stream"] == f"account-{ask['account_id']}"
    service.kill9()
    later = echo(fact | {"hold_id": ""}, 3 * 10**8) | {"ask_id": str(uuid4())}
    answers = [told, later | {"account_sequence": 6}, later | {"account_sequence": 5}]
    await publish(vending, [("echoes", "echo", answer, shard) for answer in answers])
    service.start()

    async def corrected() -> list[Any]:
        found = await posted()
        return found if len(found) > 1 else []

    _, second = await eventually(corrected)
    assert second["revision"] == first["revision"] + 1
    balance = await asyncio.to_thread(vending.command, "trial-balance")
    assert balance.returncode == 0, balance.stderr
    stands = [line.split()[-1] for line in balance.stdout.splitlines() if ":" in line]
    assert stands == ["1.000000000", "-0.300000000", "-0.700000000"]


async def test_two_persons_pay_credit_out_on_the_echo_and_every_paper_has_its_number(
    vending: Vending,
) -> None:
    name, other = vending.id, (("wattvend-caller", "desk-2"), ("wattvend-actor", "u-82"))
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending, first_sale_minor=100)
        reserve = pb.ReserveSaleRequest(
            transaction_id=name("tx"),
            account=names.ACCOUNT.name(name("A")),
            amount_minor=70,
            method="qr",
        )
        reserved = await call(stub.ReserveSale, reserve)
        assert reserved.status == "reserved"
        confirm = pb.ConfirmSaleRequest(name=reserved.name)
        sold = await call(stub.ConfirmSale, confirm)
        payment = await call(stub.GetPayment, pb.GetPaymentRequest(name=reserved.name))
        assert (payment.status, payment.receipt) == ("sold", sold.sale.receipt)
        refund_id = str(uuid4())
        refund = pb.RefundCreditRequest(
            name=names.ACCOUNT.name(name("A")), amount_minor=150, method="cash", reason="moves out"
        )
        code, reason, _ = await refusal(call(stub.RefundCredit, refund, refund_id))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "APPROVAL_REQUIRED")
        waits = await call(
            stub.ListApprovals, pb.ListApprovalsRequest(filter="legal_entity = legalEntities/LE1")
        )
        (waiting,) = [w for w in waits.approvals if w.target == names.ACCOUNT.name(name("A"))]
        approve = pb.ApproveRequest(name=waiting.name, reason="seen")
        _, reason, _ = await refusal(call(stub.Approve, approve))
        assert reason == "SAME_PERSON"
        approved = await stub.Approve(approve, metadata=other, timeout=DEADLINE_S)
        assert approved.status == "executed"
        hold = await hold_of(vending, "open")
        assert hold["held_nano"] == 150 * 10**7
        service = vending.service
        assert service is not None
        service.kill9()
    await publish(vending, [("echoes", "echo", echo(hold, 20 * 10**7), hold["shard"])])
    service.start()
    async with stub_of(vending) as stub:
        paid = await call(stub.RefundCredit, refund, refund_id)
        assert paid.refund.amount_minor == 150
        assert paid.credited_nano == 20 * 10**7
        papers = [sold.sale.receipt, paid.refund.receipt]
        told = [await call(stub.GetReceipt, pb.GetReceiptRequest(name=paper)) for paper in papers]
        assert [answer.number for answer in told] == [2, 3]
        printed = await call(stub.PrintReceipt, pb.PrintReceiptRequest(name=papers[1]))
        assert (printed.number, printed.pdf[:5]) == (3, b"%PDF-")
        assert await call(stub.ConfirmSale, confirm) == sold


async def test_a_store_that_is_behind_its_ledger_takes_no_commands_until_a_person_acts(
    vending: Vending,
) -> None:
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
    await all_published(vending, events=6)
    service = vending.service
    assert service is not None
    service.stop()
    for path in vending.store.parent.glob("events.sqlite*"):
        path.unlink()
    with stray_process(vending):
        async with stub_of(vending) as stub:
            sale = pb.SellRequest(
                name=names.ACCOUNT.name(vending.id("A")), amount_minor=500, method="qr"
            )
            code, reason, message = await eventually(lambda: answered(stub, sale))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert "raise-book-epoch" in message
    assert vending.command("raise-book-epoch").returncode == 0
    service.start()
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
    log = await all_published(vending, events=6 + 6)
    assert len({value["book_epoch"] for _, _, value in log}) == 2


async def test_a_store_put_back_to_an_earlier_point_gets_back_what_it_lost_and_sells_on(
    vending: Vending,
) -> None:
    service, name = vending.service, vending.id
    assert service is not None
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending, first_sale_minor=100)
        await all_published(vending, events=7)
    service.stop()
    backup = vending.store.with_name("backup.sqlite")
    shutil.copy(vending.store, backup)
    service.start()
    lost = pb.SellRequest(name=names.ACCOUNT.name(name("A")), amount_minor=500, method="qr")
    request_id = str(uuid4())
    async with stub_of(vending) as stub:
        sold = await call(stub.Sell, lost, request_id)
        for number in range(20):
            await call(
                stub.RegisterMeter,
                pb.RegisterMeterRequest(
                    meter_id=f"{name('M')}-{number}",
                    serial=f"{vending.suffix}-{number}",
                    gateway=names.GATEWAY.name(name("G")),
                    unit=2 + number,
                    profile="acrel-ddsy1352",
                    commodity=ENERGY,
                    ratio=1,
                ),
            )
        await all_published(vending, events=28)
    service.stop()
    whole = events_of(vending.store)
    for path in vending.store.parent.glob("events.sqlite*"):
        path.unlink()
    shutil.copy(backup, vending.store)
    with stray_process(vending):
        async with stub_of(vending) as stub:
            _, _, message = await eventually(lambda: answered(stub, lost))
    assert "import-ledger" in message
    imported = vending.command("import-ledger")
    assert imported.returncode == 0, imported.stderr
    assert "21 events were imported; the book ends at position 28" in imported.stdout
    assert events_of(vending.store) == whole
    service.start()
    async with stub_of(vending) as stub:
        assert await call(stub.Sell, lost, request_id) == sold
        more = pb.SellRequest(name=names.ACCOUNT.name(name("A")), amount_minor=600, method="cash")
        after = await call(stub.Sell, more)
        assert after.version.revision == sold.version.revision + 1
        await all_published(vending, events=29)
    verified = vending.command("verify", arguments=["--ledger"])
    assert verified.returncode == 0, verified.stderr + verified.stdout
    assert "29 events stand in ledger as they stand here" in verified.stdout


def events_of(store: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(store)) as connection:
        return connection.execute("SELECT * FROM event ORDER BY position").fetchall()


@contextmanager
def stray_process(vending: Vending) -> Iterator[None]:
    """Run a vending that is not expected to get ready."""
    environment = {f"WATTVEND_VENDING_{key}": value for key, value in vending.settings.items()}
    environment["WATTVEND_VENDING_HTTP_PORT"] = str(free_ports(1)[0])
    process = subprocess.Popen(
        [sys.executable, "-m", "services.vending"],
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(15) == 0


async def answered(stub: Any, sale: pb.SellRequest) -> Any:
    """Return the refusal, once somebody listens."""
    found = await refusal(call(stub.Sell, sale))
    return None if "connect" in found[2] else found


async def test_sales_are_answered_while_kafka_is_away_and_published_when_it_is_back(
    vending: Vending,
) -> None:
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
        await all_published(vending, events=6)
        vending.stack.kill9("kafka")
        try:
            for amount_minor in (100, 200):
                sale = pb.SellRequest(
                    name=names.ACCOUNT.name(vending.id("A")), amount_minor=amount_minor, method="qr"
                )
                await call(stub.Sell, sale)
        finally:
            vending.stack.start("kafka")
    ledger = await all_published(vending, events=8)
    sold = [value for _, _, value in ledger if value["type"] == "credit-sold"]
    assert {value["revision"] for value in sold} == {1, 2}


async def test_the_chain_of_a_store_is_verified_and_an_altered_one_is_not(
    vending: Vending,
) -> None:
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending, first_sale_minor=100)
    await all_published(vending, events=7)
    verified = vending.command("verify")  # beside the service
    assert verified.returncode == 0, verified.stderr
    assert "7 events in 6 streams are unaltered" in verified.stdout
    assert "signed up to position 7 by key" in verified.stdout
    assert vending.service is not None
    vending.service.stop()
    connection = sqlite3.connect(vending.store)
    connection.execute("DROP TRIGGER event_update")
    connection.execute(
        "UPDATE event SET data = CAST(data || 'x' AS BLOB) WHERE type = 'credit-sold'"
    )
    connection.commit()
    connection.close()
    altered = vending.command("verify")
    assert altered.returncode == 1
    account = f"account-{vending.id('A')}"
    assert f"position 7: {account} revision 1, credit-sold" in altered.stdout
    assert "its data or metadata was altered" in altered.stdout


def test_a_port_in_use_and_an_exposed_one_without_tls_are_refused_with_what_to_change(
    vending: Vending,
) -> None:
    second = Vending(
        vending.stack, vending.run, vending.store.with_name("other.sqlite"), vending.port, "x"
    )
    assert second.command("raise-book-epoch").returncode == 0
    taken = second.command("run", HTTP_PORT=str(free_ports(1)[0]))
    assert taken.returncode == 2
    assert f"127.0.0.1:{vending.port}" in taken.stderr
    assert "choose another port" in taken.stderr
    exposed = second.command("run", GRPC_HOST="0.0.0.0")
    assert exposed.returncode == 2
    assert (
        "WATTVEND_VENDING_GRPC_HOST=0.0.0.0 would listen beyond this machine without TLS"
        in exposed.stderr
    )


async def test_health_and_reflection_answer_and_a_call_without_a_caller_does_not(
    vending: Vending,
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="wattvend.vending.v1.VendingService")

        async def serving() -> bool:
            answer = await health.Check(request)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        assert await eventually(serving)
        stub = vending_pb2_grpc.VendingServiceStub(channel)
        code, reason, message = await refusal(
            stub.GetAccount(pb.GetAccountRequest(name="accounts/A"))
        )
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_MISSING")
        assert "wattvend-caller" in message


def test_a_second_process_on_the_store_is_refused_with_a_clear_error(vending: Vending) -> None:
    second = Vending(vending.stack, vending.run, vending.store, free_ports(1)[0], "x")
    answer = second.command("raise-book-epoch")
    assert answer.returncode == 70
    assert "in use by another vending process" in answer.stderr
