"""A vending without gRPC and Kafka: the office on a file or in memory, and short ways to ask it."""

import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

from prometheus_client import CollectorRegistry

from services.common.runtime.profiles import profiles
from services.vending.adapters import stores, tables
from services.vending.adapters.filling import fill
from services.vending.adapters.sqlite_file import SqliteFile
from services.vending.adapters.sqlite_store import SqliteEventStore
from services.vending.adapters.stores import SQLITE_SCHEMA
from services.vending.adapters.tables import SqlTables
from services.vending.application.book import Book, Outcome
from services.vending.application.office import Office, Terms
from services.vending.domain.account import Account
from services.vending.domain.authority import Authority, PublishAuthority
from services.vending.domain.closings import CloseAccount
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.event_store import EventStore
from services.vending.domain.lending import SetDebt
from services.vending.domain.meter import Meter
from services.vending.domain.origin import NOBODY, Origin
from services.vending.domain.policy import PublishPolicy
from services.vending.domain.sale import Sell
from services.vending.domain.site import RegisterSite
from services.vending.domain.tables import Charged, Tables
from services.vending.domain.tariff import PublishTariff
from services.vending.metrics import Metrics
from tests.unit.vending_exports import PaperReporting

T0_MS = 1_790_000_000_000
LEAD_MS = 3_600_000
TERMS = Terms(8, LEAD_MS, profiles())


def lasting_folder() -> Path:
    """Make a folder for what many tests look at; it goes when their process ends."""
    folder = tempfile.mkdtemp(prefix="wattvend-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class FakeClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at_ms = T0_MS

    def now_ms(self) -> int:
        return self.at_ms

    def monotonic_ms(self) -> int:
        return self.at_ms


@dataclass
class World:
    """An office and everything behind it."""

    file: SqliteFile
    store: EventStore
    tables: Tables
    book: Book
    office: Office
    clock: FakeClock

    def ask(
        self,
        *content: object,
        request_id: UUID | None = None,
        caller: str = "till",
        origin: Origin = NOBODY,
    ) -> Request:
        return Request(
            caller,
            str(request_id or uuid4()),
            fingerprint("test", *content),
            self.clock.now_ms(),
            origin=origin,
        )

    async def site(self, site_id: str = "S1", currency: str = "CNY", entity: str = "LE1") -> None:
        await self.office.register_site(
            RegisterSite(self.ask(), site_id, "Mall", "Asia/Shanghai", currency, entity, 10)
        )

    async def tariff(self, tariff_id: str = "T1", **changed: Any) -> Outcome[Any]:
        content: dict[str, Any] = {
            "commodity": "electricity",
            "currency": "CNY",
            "legal_entity": "LE1",
            "price_micro": 800_000,
            "plan": None,
            "effective_at_ms": 0,
            "lead_ms": LEAD_MS,
        }
        request = changed.pop("request", None) or self.ask()
        return await self.office.publish_tariff(
            PublishTariff(request, tariff_id, **(content | changed))
        )

    async def policy(self, policy_id: str = "P1", **changed: Any) -> Outcome[Any]:
        content: dict[str, Any] = {
            "currency": "CNY",
            "alarm_1_minor": 1000,
            "alarm_2_minor": 500,
            "overdraft_minor": 0,
            "restore_minor": 1,
            "lease_ms": 0,
            "max_evidence_age_ms": 0,
            "emergency_minor": 0,
            "rules": None,
            "ceiling_minor": 0,
            "fee_ppm": 0,
            "fee_minor": 0,
            "legal_entity": "LE1",
            "rounding": "",
        }
        request = changed.pop("request", None) or self.ask()
        return await self.office.publish_policy(
            PublishPolicy(request, policy_id, **(content | changed))
        )

    async def gateway(
        self,
        gateway_id: str = "G1",
        protocol: str = "modbus-tcp",
        address: str = "127.0.0.1:502",
        site_id: str = "S1",
    ) -> None:
        request = self.ask()
        await self.office.register_gateway(request, gateway_id, site_id, protocol, address)

    async def meter(self, meter_id: str = "M1", **changed: Any) -> Outcome[Meter]:
        content: dict[str, Any] = {
            "serial": f"serial-{meter_id}",
            "gateway_id": "G1",
            "unit": 1,
            "profile": "acrel-ddsy1352",
            "commodity": "electricity",
            "ratio": 1,
            "max_power_w": None,
        }
        request = changed.pop("request", None) or self.ask()
        return await self.office.register_meter(request, meter_id=meter_id, **(content | changed))

    async def account(self, account_id: str = "A1", **changed: Any) -> Outcome[Account]:
        content: dict[str, Any] = {
            "site_id": "S1",
            "subject_id": None,
            "commodity": "electricity",
            "tariff_id": "T1",
            "policy_id": "P1",
            "first_sale_minor": 0,
            "method": "",
        }
        request = changed.pop("request", None) or self.ask()
        return await self.office.open_account(request, account_id=account_id, **(content | changed))

    async def sell(
        self, amount_minor: int, account_id: str = "A1", request: Request | None = None
    ) -> Outcome[Account]:
        asked = request or self.ask(account_id, amount_minor)
        return await self.office.sell(Sell(asked, account_id, amount_minor, "cash"))

    async def grant(
        self, account_id: str = "A1", request: Request | None = None
    ) -> Outcome[Account]:
        asked = request or self.ask(account_id)
        return await self.office.grant_emergency_credit(asked, account_id)

    async def owe(
        self, debt_minor: int, share_ppm: int, account_id: str = "A1"
    ) -> Outcome[Account]:
        asked = self.ask(account_id, debt_minor, share_ppm)
        return await self.office.set_debt(
            SetDebt(asked, account_id, debt_minor, share_ppm, "old meter")
        )

    async def assign(
        self,
        meter_id: str = "M1",
        account_id: str = "A1",
        register_milli: int | None = 1000,
        request: Request | None = None,
    ) -> Outcome[Meter]:
        asked = request or self.ask(meter_id, account_id, register_milli)
        return await self.office.assign_meter(asked, meter_id, account_id, register_milli)

    async def release(
        self, meter_id: str = "M1", register_milli: int | None = 2000
    ) -> Outcome[Meter]:
        asked = self.ask(meter_id, register_milli)
        return await self.office.release_meter(asked, meter_id, register_milli)

    async def close(self, account_id: str = "A1", wait_s: float = 0.0) -> Outcome[Account]:
        return await self.office.close_account(CloseAccount(self.ask(), account_id), wait_s)

    async def charge(self, meter_key: int, epoch: int, sequence: int, register_milli: int) -> None:
        charged = Charged(meter_key, epoch, sequence, register_milli, T0_MS)
        await self.tables.keep_charged([charged], [])

    async def may_alone(self, rules: str, request: Request | None = None) -> Outcome[Authority]:
        """Publish what one person may do alone; the first time as one whom another lets."""
        asked = request or self.ask(rules)
        if await self.book.state_of(Authority, "LE1") is None:
            asked = replace(asked, origin=replace(asked.origin, approved_by="web u-chief"))
        return await self.office.publish_authority(PublishAuthority(asked, "LE1", "CNY", rules, 0))

    async def mall(self) -> None:
        """Register one of each: site, gateway, meter, tariff, policy, account."""
        await self.site()
        await self.gateway()
        await self.meter()
        await self.tariff()
        await self.policy()
        await self.account()


@asynccontextmanager
async def world(path: Path, terms: Terms = TERMS) -> AsyncIterator[World]:
    """Open the book at `path` as a process would; a second time is a restart."""
    async with SqliteFile(path, SQLITE_SCHEMA) as file:
        kept = SqlTables(file)
        store = SqliteEventStore(file, tables.changes)
        await fill(store, file)
        book = Book(store, Metrics(CollectorRegistry()))
        clock = FakeClock()
        office = Office(book, kept, clock, terms)
        office.batches.exporting.exports = PaperReporting(str(path))
        yield World(file, store, kept, book, office, clock)
        await book.drained()


@asynccontextmanager
async def world_at(address: str) -> AsyncIterator[World]:
    """Open the book at an address of any kind; it has no `file`."""
    async with stores.opened(address, "test") as stored:
        book = Book(stored.store, Metrics(CollectorRegistry()))
        clock = FakeClock()
        office = Office(book, stored.tables, clock, TERMS)
        office.batches.exporting.exports = PaperReporting(address)
        yield World(cast("SqliteFile", None), stored.store, stored.tables, book, office, clock)
        await book.drained()
