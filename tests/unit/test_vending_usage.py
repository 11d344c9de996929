"""Goal: what metering says was used is posted once, as totals, asked for once a day; it adds up.

Method: the office on a file; metering is played by whoever answers the asks that were published.
Restarts open the same file again. The clock is set.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import Bug, Retriable
from services.common.kernel.ids import column_key
from services.common.runtime import codec
from services.common.runtime.kafka import Outgoing
from services.common.runtime.service import EXIT_FAILED
from services.vending.adapters import bus, stores
from services.vending.application import balances
from services.vending.application import statements as statements_module
from services.vending.application.balances import Until
from services.vending.application.relay import START, Relay
from services.vending.application.statements import DAY_MS, LOST_AFTER_MS, Pace, Statements
from services.vending.application.stored import event_of
from services.vending.domain.account import Account, Status
from services.vending.domain.event_store import StoreUnavailable
from services.vending.domain.events.closings import AccountClosed
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.postings import COMPONENTS, Usage
from services.vending.domain.settling import SettleClosing
from services.vending.domain.tables import Ask
from services.vending.domain.trial_balance import TrialBalance
from services.vending.main import main
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_relay import Notebook
from tests.unit.vending_world import T0_MS, World

PACE = Pace(begins_minute=960, asks_per_s=20)
NANO = 10**7


class Metering:
    """Answers what it is asked: each account's totals, its sequence one more for each change."""

    def __init__(self) -> None:
        self.sequences: dict[str, int] = {}
        self.usage: dict[str, dict[str, int]] = {}

    def uses(self, account_id: str = "A1", **nano: int) -> None:
        self.sequences[account_id] = self.sequences.get(account_id, 0) + 1
        self.usage[account_id] = {f"{name}_nano": nano.get(name, 0) for name in COMPONENTS}

    def echo(self, account_id: str, **answers: str | None) -> dict[str, Any]:
        usage = self.usage.get(account_id, {f"{name}_nano": 0 for name in COMPONENTS})
        return {
            "account_id": account_id,
            "account_revision": 1,
            "book_epoch": 1,
            "hold_id": "",
            "ask_id": None,
            "credited_nano": 0,
            "charged_nano": sum(usage.values()),
            "account_sequence": self.sequences.get(account_id, 0),
            "open_meters": 0,
            "last_reading_received_at_ms": None,
            "decided_at_ms": 1,
            "log_offset": 7,
            "currency": "CNY",
            "legal_entity": "LE1",
            "commodity": "electricity",
            **usage,
            "meters": [],
            "row": b"row of " + account_id.encode(),
            "frozen": False,
            "waiting": [],
            **answers,
        }


class Round:
    """A vending that asks, and what it asked."""

    def __init__(self, world: World, pace: Pace = PACE) -> None:
        self.world = world
        self.notebook = Notebook()
        self.metering = Metering()
        metrics = Metrics(CollectorRegistry())
        self.relay = Relay(
            world.store,
            world.tables,
            self.notebook,
            clock=world.clock,
            metrics=metrics,
            log=structlog.get_logger("test"),
            begin=START,
            book_epoch=1,
            shards=8,
        )
        self.statements = Statements(
            world.office,
            world.store,
            world.tables,
            self.notebook,
            self.relay,
            clock=world.clock,
            metrics=metrics,
            pace=pace,
        )

    @property
    def asked(self) -> list[Outgoing]:
        return [record for record in self.notebook.records if record.subject == "usage-ask"]

    @property
    def names(self) -> list[str]:
        return [record.record["account_id"] for record in self.asked]

    async def answer(self, record: Outgoing) -> None:
        ask = record.record
        echo = self.metering.echo(ask["account_id"], ask_id=ask["ask_id"])
        value = codec.decode(codec.schema_header("echo"), codec.encode("echo", echo))
        await self.statements.answered(ask["ask_id"], bus.usage_told(value, T0_MS))


@asynccontextmanager
async def rounds(path: Path, pace: Pace = PACE) -> AsyncIterator[Round]:
    async with vending_world.world(path) as world:
        found = Round(world, pace)
        running = asyncio.create_task(found.relay.run())
        yield found
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


async def posted(world: World) -> list[UsagePosted]:
    events = map(event_of, await world.store.read_all(0, 1000))
    return [event for event in events if isinstance(event, UsagePosted)]


def entries(event: UsagePosted) -> dict[str, int]:
    return {posting.account: posting.amount_nano for posting in event.postings or ()}


# --- what is posted ------------------------------------------------------------------------------


async def told(world: World, metering: Metering, account_id: str = "A1") -> Account:
    command = bus.usage_told(metering.echo(account_id), T0_MS)
    return (await world.office.post_usage(command)).state


async def test_usage_is_posted_as_totals_and_its_postings_are_the_difference(path: Path) -> None:
    async with vending_world.world(path) as world:
        metering = Metering()
        await world.mall()
        await world.sell(1000)
        metering.uses(energy=100, surcharge=5, ladder=20, tax=13)
        state = await told(world, metering)
        assert (state.used.account_sequence, state.used.usage.charged_nano) == (1, 138)
        metering.uses(energy=150, surcharge=5, ladder=10, tax=20, fees=7)
        await told(world, metering)
        first, second = await posted(world)
        assert entries(first) == {
            "liabilities:prepayment": 138,
            "income:electricity:energy": -100,
            "income:electricity:surcharge": -5,
            "income:electricity:ladder": -20,
            "liabilities:tax": -13,
        }
        assert (second.charged_nano, second.usage) == (192, Usage(150, 5, 10, 7, 20, 0))
        assert entries(second) == {
            "liabilities:prepayment": 54,
            "income:electricity:energy": -50,
            "income:electricity:ladder": 10,  # the ladder was wrong: it goes back
            "income:electricity:fees": -7,
            "liabilities:tax": -7,
        }
        assert (second.row, second.log_offset, second.meters) == (b"row of A1", 7, [])


async def test_a_sequence_that_is_known_or_older_posts_nothing(path: Path) -> None:
    async with vending_world.world(path) as world:
        metering = Metering()
        await world.mall()
        metering.uses(energy=100)
        old = bus.usage_told(metering.echo("A1"), T0_MS)
        metering.uses(energy=90)  # a correction
        await told(world, metering)
        await told(world, metering)
        assert (await world.office.post_usage(old)).event is None
        (event,) = await posted(world)
        assert event.account_sequence == 2
        assert (await told(world, Metering())).used.account_sequence == 2
    async with vending_world.world(path) as world:
        await told(world, metering)
        assert len(await posted(world)) == 1


async def test_usage_is_remembered_by_its_totals_not_by_its_requests(path: Path) -> None:
    async with vending_world.world(path) as world:
        metering = Metering()
        await world.mall()
        request = world.ask("A1", 5)
        await world.sell(5, request=request)
        for energy in range(1, 20):
            metering.uses(energy=energy)
            state = await told(world, metering)
        (event,) = [event for event in await posted(world) if event.account_sequence == 9]
        assert state.answers.get(event.key) is None
        assert state.answers.revision == 20
        repeated = await world.sell(5, request=request)
        assert (repeated.revision, repeated.state.credited_nano) == (1, 5 * NANO)


async def test_a_closing_posts_what_was_used_in_the_same_append(path: Path) -> None:
    async with vending_world.world(path) as world:
        metering = Metering()
        await world.mall()
        await world.sell(5)
        with pytest.raises(Retriable):
            await world.close()
        hold = (await world.office.account("A1")).closing
        assert hold is not None
        metering.uses(energy=4 * NANO, tax=NANO)
        echo = metering.echo("A1", hold_id=hold.hold_id)
        usage = bus.usage_told(echo, T0_MS)
        await world.office.settle(SettleClosing("A1", hold.hold_id, 5 * NANO, 1, 0, T0_MS, usage))
        *_, used, closed = map(event_of, await world.store.read_all(0, 1000))
        assert isinstance(used, UsagePosted)
        assert isinstance(closed, AccountClosed)
        state = await world.office.account("A1")
        assert (state.status, state.used.usage) == (Status.CLOSED, Usage(4 * NANO, tax_nano=NANO))
        book = TrialBalance(await posted(world)).books["LE1", "CNY"]
        assert sum(line.balance_nano for line in book.values()) == 0


def test_an_echo_whose_components_do_not_add_up_is_nobody_s() -> None:
    echo = Metering().echo("A1") | {"charged_nano": 1}
    with pytest.raises(Bug, match="do not add up"):
        bus.usage_told(echo, T0_MS)


# --- who is asked, and when ----------------------------------------------------------------------


async def test_each_account_is_asked_once_a_day_and_houses_are_not(path: Path) -> None:
    async with rounds(path) as vending:
        world, metering = vending.world, vending.metering
        await world.mall()
        await world.account("A2")
        metering.uses("A1", energy=NANO)
        assert await vending.statements.step() == 2
        assert await vending.statements.step() == 0
        assert sorted(vending.names) == ["A1", "A2"]
        asked = {record.record["account_id"]: record for record in vending.asked}["A1"]
        assert asked.partition == (await world.office.account("A1")).shard
        assert asked.record["account_key"] == column_key("account", "A1")
        assert await world.tables.asks_waiting(0) == 2
        for record in vending.asked:
            await vending.answer(record)
            await vending.answer(record)  # it was delivered twice
        assert await world.tables.asks_waiting(0) == 0
        assert [event.account_id for event in await posted(world)] == ["A1"]
        world.clock.at_ms = PACE.round_ms(T0_MS) + DAY_MS - 1
        assert await vending.statements.step() == 0
        world.clock.at_ms += 1
        assert await vending.statements.step() == 2


async def test_metering_hears_of_an_account_before_it_is_asked_about_it(path: Path) -> None:
    async with rounds(path) as vending:
        await vending.world.mall()
        await vending.statements.step()
        log = [record for record in vending.notebook.records if record.topic == "shard-log"]
        about = [record.subject for record in log if record.key == "A1"]
        assert about.index("account-fact") < about.index("usage-ask")


async def test_a_restart_goes_on_where_the_round_was(path: Path) -> None:
    pace = Pace(960, asks_per_s=3)
    async with rounds(path, pace) as vending:
        await vending.world.mall()
        for number in range(7):
            await vending.world.account(f"B{number}")
        assert await vending.statements.step() == 3
        first = vending.names
    async with rounds(path, pace) as vending:
        counts = [await vending.statements.step() for _ in range(4)]
        assert counts == [3, 2, 0, 0]
        assert sorted(first + vending.names) == ["A1", *(f"B{number}" for number in range(7))]


class Counting:
    """Tables that count the pages of asks that are read."""

    def __init__(self, tables: Any) -> None:
        self.tables = tables
        self.pages = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tables, name)

    async def asks(self, after: Ask | None, limit: int) -> list[Ask]:
        self.pages += 1
        found: list[Ask] = await self.tables.asks(after, limit)
        return found


@pytest.mark.parametrize("steps", [0, 1, 5, 9, 10, 14])
async def test_a_restart_looks_at_no_account_again_that_the_round_was_through_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(statements_module, "PAGE_ACCOUNTS", 2)
    pace = Pace(960, asks_per_s=2)
    async with rounds(path, pace) as vending:
        await vending.world.mall()
        for number in range(19):
            await vending.world.account(f"B{number}")
        asked = [await vending.statements.step() for _ in range(steps)]
        before = vending.names
        assert asked[:10] == [2] * min(steps, 10)
    async with rounds(path, pace) as vending:
        tables: Any = Counting(vending.world.tables)
        vending.statements._tables = tables
        while await vending.statements.step():
            pass
        assert len(before + vending.names) == len({*before, *vending.names}) == 20
        assert tables.pages <= 3 + 2 * (10 - min(steps, 10))
        vending.world.clock.at_ms += DAY_MS + LOST_AFTER_MS
        assert await vending.statements.step() == 2, "the next round is whole again"


async def test_a_round_that_the_next_one_overtakes_leaves_nobody_out(path: Path) -> None:
    async with rounds(path, Pace(960, asks_per_s=3)) as vending:
        await vending.world.mall()
        for number in range(4):
            await vending.world.account(f"B{number}")
        assert await vending.statements.step() == 3
        for record in vending.asked:
            await vending.answer(record)
        vending.world.clock.at_ms += DAY_MS
        counts = [await vending.statements.step() for _ in range(5)]
        assert counts == [2, 3, 0, 0, 0]
        assert sorted(vending.names[3:]) == ["A1", *(f"B{number}" for number in range(4))]


async def test_an_account_that_waits_is_not_asked_again_until_its_ask_is_lost(path: Path) -> None:
    async with rounds(path) as vending:
        await vending.world.mall()
        await vending.statements.step()
        for _ in range(LOST_AFTER_MS // DAY_MS):
            vending.world.clock.at_ms += DAY_MS
            assert await vending.statements.step() == 0
        vending.world.clock.at_ms += DAY_MS
        assert await vending.statements.step() == 1
        old, new = vending.asked
        await vending.answer(old)  # its echo was late: the new one waits still
        assert await vending.world.tables.asks_waiting(0) == 1
        await vending.answer(new)
        assert await vending.world.tables.asks_waiting(0) == 0


async def test_while_metering_is_away_only_so_many_asks_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements_module, "WAITING_MAX", 4)
    monkeypatch.setattr(statements_module, "PAGE_ACCOUNTS", 2)
    async with rounds(path) as vending:
        await vending.world.mall()
        for number in range(6):
            await vending.world.account(f"B{number}")
        assert [await vending.statements.step() for _ in range(3)] == [4, 0, 0]
        await vending.answer(vending.asked[0])
        assert await vending.statements.step() == 1
        for record in vending.asked:
            await vending.answer(record)
        assert await vending.statements.step() == 2
        assert len(set(vending.names)) == 7


async def test_what_kafka_did_not_take_is_asked_with_the_next_step(path: Path) -> None:
    async with rounds(path) as vending:
        await vending.world.mall()
        await vending.relay.caught_up()
        vending.notebook.fail_at = (vending.notebook.calls + 1,)
        with pytest.raises(Retriable):
            await vending.statements.step()
        assert await vending.statements.step() == 1


async def test_what_was_asked_when_vending_died_is_asked_again_and_posted_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(asks: Any) -> None:
        raise StoreUnavailable(f"before {asks} were kept")

    async with rounds(path) as vending:
        await vending.world.mall()
        monkeypatch.setattr(vending.world.tables, "keep_asks", dies)
        with pytest.raises(StoreUnavailable):
            await vending.statements.step()
        (first,) = vending.asked
    async with rounds(path) as vending:
        vending.world.clock.at_ms += 1
        assert await vending.statements.step() == 1
        (second,) = vending.asked
        vending.metering.uses("A1", energy=5)
        for record in (first, second):
            await vending.answer(record)
        assert len(await posted(vending.world)) == 1
        assert await vending.world.tables.asks_waiting(0) == 0


async def test_a_closed_account_is_asked_once_more_and_then_never_again(path: Path) -> None:
    async with rounds(path) as vending:
        world = vending.world
        await world.mall()
        with pytest.raises(Retriable):
            await world.close()
        hold = (await world.office.account("A1")).closing
        assert hold is not None
        # As an earlier release settled it: nothing was said of components.
        await world.office.settle(SettleClosing("A1", hold.hold_id, 0, 1, 0, T0_MS))
        vending.metering.uses("A1", undivided=5)
        await vending.statements.step()
        await vending.answer(vending.asked[0])
        (event,) = await posted(world)
        assert entries(event)["income:electricity:undivided"] == -5
        world.clock.at_ms += DAY_MS
        assert await vending.statements.step() == 0


async def test_an_answer_about_nobody_is_passed_over(path: Path) -> None:
    async with rounds(path) as vending:
        told_of = bus.usage_told(vending.metering.echo("nobody"), T0_MS)
        await vending.statements.answered(str(uuid4()), told_of)
        assert await posted(vending.world) == []


# --- the trial balance ---------------------------------------------------------------------------


async def test_a_trial_balance_of_any_position_adds_up_beside_the_service_that_writes(
    path: Path,
) -> None:
    async with vending_world.world(path) as world:
        metering = Metering()
        await world.mall()
        await world.sell(1000)
        await world.owe(300, 1_000_000)
        sold_at = await world.store.head()
        world.clock.at_ms += 1
        await world.sell(200)
        metering.uses(energy=7, tax=1)
        await told(world, metering)
        async with stores.reading(f"sqlite:{path}", "test") as stored:
            now = await balances.balanced(stored.store, Until())
            before = await balances.balanced(stored.store, Until(position=sold_at))
            in_time = await balances.balanced(stored.store, Until(at_ms=T0_MS))
            positions = range(now.position + 1)
            each = [await balances.balanced(stored.store, Until(at)) for at in positions]
    stood = {name: line.balance_nano for name, line in now.balance.books["LE1", "CNY"].items()}
    assert stood == {
        "assets:cash": 1200 * NANO,
        "assets:receivable": 100 * NANO,
        "equity:brought-forward": -300 * NANO,
        "liabilities:prepayment": -1000 * NANO + 8,
        "liabilities:tax": -1,
        "income:electricity:energy": -7,
    }
    assert (now.events, before.events, before.position) == (4, 2, sold_at)
    # The usage was told by a clock of its own, which had not moved.
    assert in_time.balance.books["LE1", "CNY"]["assets:cash"].balance_nano == 1000 * NANO
    assert not any(found.balance.off_nano() for found in each)


def test_the_command_prints_a_table_of_each_legal_entity(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def two_entities() -> None:
        async with vending_world.world(path) as world:
            await world.mall()
            await world.sell(1050)
            await world.site("S2", "IDR", "LE2")
            await world.tariff("T2", currency="IDR", legal_entity="LE2")
            await world.policy("P2", currency="IDR", legal_entity="LE2")
            await world.account("A2", site_id="S2", tariff_id="T2", policy_id="P2")
            await world.sell(5, "A2")

    asyncio.run(two_entities())
    monkeypatch.setenv("WATTVEND_VENDING_STORE_PATH", str(path))
    assert main(["trial-balance"]) == 0
    told = capsys.readouterr().out
    assert [line.split() for line in told.splitlines()[:5]] == [
        ["LE1,", "CNY"],
        ["account", "debit", "credit", "balance"],
        ["assets:cash", "10.500000000", "0.000000000", "10.500000000"],
        ["liabilities:prepayment", "0.000000000", "10.500000000", "-10.500000000"],
        ["total", "10.500000000", "10.500000000", "0.000000000"],
    ]
    assert "LE2, IDR" in told
    assert told.endswith("2 movements of money up to position 12\n")
    assert main(["trial-balance", "--legal-entity", "LE2", "--at", "2020-01-01T00:00Z"]) == 0
    assert capsys.readouterr().out == "0 movements of money up to position 12\n"
    with pytest.raises(SystemExit):
        main(["trial-balance", "--at", "2020-01-01"])
    assert "write it with its zone" in capsys.readouterr().err
    monkeypatch.setenv("WATTVEND_VENDING_STORE_PATH", str(path.with_name("none.sqlite")))
    assert main(["trial-balance"]) == EXIT_FAILED
    assert "store_path" in capsys.readouterr().err
