"""Goal: a batch does to each of its targets what was asked, once, and says what came of each.

Method: the office on a real SQLite file. The story of a batch of every kind dies at each of its
appends, is told again after a restart, and is compared with that which nobody disturbs.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.common.kernel.errors import Bug, InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.common.runtime.settings import WrongSettings
from services.vending.adapters import reporting
from services.vending.application import batches as application
from services.vending.application.batches import UnderWay
from services.vending.application.drafting import TARGETS_AT_A_STRETCH, Draft, Selected
from services.vending.application.stored import event_of
from services.vending.domain import batch as batches
from services.vending.domain import batching
from services.vending.domain.approval import Approve
from services.vending.domain.authority import rules_text
from services.vending.domain.batch import Batch, Kind, Of, Outcome, Status, Terms
from services.vending.domain.batching import CancelBatch, PauseBatch, ResumeBatch, SubmitBatch
from services.vending.domain.changes import ChangeTenant, ChangeTerms
from services.vending.domain.events.batches import BatchTargets
from services.vending.domain.events.event import Event
from services.vending.domain.meter import Meter
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.origin import Origin
from services.vending.domain.pacing import MINUTE_MS
from tests.unit import vending_world
from tests.unit.test_vending_office import refused
from tests.unit.vending_crashing import Died, at_every_step
from tests.unit.vending_exports import PaperReporting
from tests.unit.vending_world import T0_MS, World

ALICE, BOB = Origin("web", "u-alice"), Origin("web", "u-bob")
RELAYS = (Kind.FORCE_OFF, Kind.FORCE_ON, Kind.RESTORE_PREPAID)
FROM_MS, TO_MS = T0_MS - 3_600_000, T0_MS
BUDGET = 10
"""Of the site that `vending_world` registers."""


def ids(number: int) -> UUID:
    return UUID(int=number + 1)


async def alone(world: World, **rules: int | None) -> None:
    """Let one person do what is named, and nothing else."""
    said = rules_text({name.replace("_", "-"): above for name, above in rules.items()})
    request = world.ask(said, request_id=ids(900), caller="web", origin=ALICE)
    await world.may_alone(said, request)


async def many(world: World, count: int) -> None:
    """Register a mall, with so many meters and accounts."""
    await world.site()
    await world.gateway()
    await world.tariff()
    await world.tariff("T2", price_micro=900_000)
    await world.policy()
    await world.policy("P2", alarm_1_minor=2000)
    for number in range(1, count + 1):
        await world.meter(f"M{number}", unit=number)
        await world.account(f"A{number}")


def terms(kind: Kind, reason: str = "works") -> Terms:
    return Terms(
        kind,
        reason,
        "cash" if kind is Kind.SALE else None,
        "T2" if kind is Kind.PRICE else None,
        "P2" if kind is Kind.POLICY else None,
        *((FROM_MS, TO_MS) if kind is Kind.EXPORT else ()),
    )


def draft(
    world: World, kind: Kind, targets: list[str], number: int = 0, amount_minor: int = 500
) -> Draft:
    request = world.ask(kind, *targets, request_id=ids(number), caller="web", origin=ALICE)
    has_amounts = batches.RULES[kind].has_amounts
    listed = tuple((target, None) for target in targets)
    return Draft(request, terms(kind), "", listed, amount_minor if has_amounts else None)


def names(kind: Kind, count: int) -> list[str]:
    letter = "M" if batches.RULES[kind].of is Of.METERS else "A"
    return [f"{letter}{number}" for number in range(1, count + 1)]


async def created(world: World, kind: Kind, count: int = 3, number: int = 0) -> Batch:
    return await world.office.batches.create(draft(world, kind, names(kind, count), number))


async def submitted(world: World, batch_id: str, number: int = 50) -> Batch:
    request = world.ask(batch_id, request_id=ids(number), caller="web", origin=ALICE)
    return await world.office.batches.submit(SubmitBatch(request, batch_id))


async def moved(world: World, made: Any, batch_id: str, number: int) -> Batch:
    request = world.ask(made.__name__, batch_id, request_id=ids(number), caller="web", origin=BOB)
    return await world.office.batches.move(made(request, batch_id, "because"))


async def to_its_end(world: World, batch_id: str) -> Batch:
    """Give rounds, and let minutes pass where all wait, until nothing more is to do.

    A clock that a restart began anew goes on where the book ends.
    """
    every = [event_of(each) for each in await world.store.read_all(0, 100_000)]
    world.clock.at_ms = max(world.clock.at_ms, *(event.occurred_at_ms for event in every))
    for _ in range(1000):
        if getattr(world.book._store, "dead", False):
            raise Died
        if not await world.office.batches.turn():
            if (await world.office.batches.of(batch_id)).is_over:
                return await world.office.batches.of(batch_id)
            world.clock.at_ms += MINUTE_MS // 4
    raise AssertionError("the batch does not come to its end")


async def stored(world: World, subject: str) -> list[Event]:
    every = [event_of(each) for each in await world.store.read_all(0, 100_000)]
    return [event for event in every if subject == event.SUBJECT]


async def outcomes(world: World, batch_id: str) -> Counter[Outcome]:
    state, _ = await world.office.batches.results(batch_id)
    return Counter(state.outcome(number) for number in range(len(state.targets)))


EVENT_OF = {
    Kind.FORCE_OFF: "relay-forced",
    Kind.FORCE_ON: "relay-forced",
    Kind.RESTORE_PREPAID: "relay-forced",
    Kind.SALE: "credit-sold",
    Kind.ADJUSTMENT: "credit-adjusted",
    Kind.PRICE: "account-terms-changed",
    Kind.POLICY: "account-terms-changed",
    Kind.EXPORT: "",
}
EVERYTHING: dict[str, int | None] = {
    "batch": None,
    "force_off": None,
    "keep_power": None,
    "adjustment": None,
    "account_terms": None,
    "export": None,
}


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await many(opened, 25)
        yield opened


# --- crash points --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_batch_that_dies_at_any_step_does_each_once_and_all_in_the_end(
    tmp_path: Path, kind: Kind
) -> None:
    async def setting(world: World) -> None:
        await many(world, 3)
        await alone(world, **EVERYTHING)
        if kind is Kind.RESTORE_PREPAID:
            for meter_id in ("M1", "M2", "M3"):
                await world.office.order(ForceRelay(world.ask(meter_id), meter_id, "on", "works"))

    async def story(world: World) -> None:
        drafted = await created(world, kind)
        await submitted(world, drafted.batch_id)
        await to_its_end(world, drafted.batch_id)

    async def judge(world: World) -> None:
        (finished,) = await stored(world, "batch-finished")
        assert finished.record()["done_count"] == 3
        before = 3 if kind is Kind.RESTORE_PREPAID else 0
        events = 0 if kind is Kind.EXPORT else 3 + before
        assert len(await stored(world, EVENT_OF[kind])) == events
        if kind is Kind.EXPORT:
            await assert_proven(world, finished.record()["batch_id"])

    # Each append, or write of another service, is two half steps: the draft, its submission, a
    # round's begin and end, and three.
    assert await at_every_step(tmp_path, setting, story, judge) >= 14


async def test_a_paced_batch_that_dies_between_its_rounds_keeps_the_budget(tmp_path: Path) -> None:
    count = BUDGET + 2

    async def setting(world: World) -> None:
        await many(world, count)
        await alone(world, **EVERYTHING)

    async def story(world: World) -> None:
        drafted = await created(world, Kind.FORCE_OFF, count)
        await submitted(world, drafted.batch_id)
        await to_its_end(world, drafted.batch_id)

    async def judge(world: World) -> None:
        assert_paced(await stored(world, "relay-forced"))
        assert len(await stored(world, "relay-forced")) == count

    assert await at_every_step(tmp_path, setting, story, judge) >= 2 * (count + 6)


async def test_one_that_is_approved_cancelled_and_dies_does_none_beyond_the_open_round(
    tmp_path: Path,
) -> None:
    count = BUDGET + 2

    async def setting(world: World) -> None:
        await many(world, count)
        await alone(world)

    async def story(world: World) -> None:
        drafted = await created(world, Kind.FORCE_OFF, count)
        try:
            await submitted(world, drafted.batch_id)
        except InvalidInput as refusal:
            if refusal.reason not in (Reason.APPROVAL_REQUIRED, Reason.BATCH_STATE):
                raise
        ((_, approval),) = await all_proposals(world)
        request = world.ask(approval, request_id=ids(60), caller="web", origin=BOB)
        await world.office.approvals.approve(Approve(request, approval, "seen"))
        await world.office.batches.turn()
        await moved(world, CancelBatch, drafted.batch_id, 61)
        await to_its_end(world, drafted.batch_id)

    async def judge(world: World) -> None:
        forced = await stored(world, "relay-forced")
        assert {event.origin.approved_by for event in forced} <= {"web u-bob"}
        assert_paced(forced)
        (event,) = await stored(world, "batch-cancelled")
        found = await outcomes(world, event.record()["batch_id"])
        assert found[Outcome.DONE] == len(forced)
        assert found[Outcome.WAITING] == 0

    await at_every_step(tmp_path, setting, story, judge, same=False)


async def assert_proven(world: World, batch_id: str) -> None:
    """Check that the book tells of an export what is kept of it, and of nothing else."""
    state, results = await world.office.batches.results(batch_id)
    told = {
        (batch_id, state.targets[number].target_id): result.export
        for number, result in results.items()
        if result.outcome is Outcome.DONE
    }
    kept = PaperReporting(str(world.file._path)).kept
    assert told == {key: kept[key] for key in told}
    assert state.rows == sum(each.rows for each in told.values() if each)


async def all_proposals(world: World) -> list[tuple[str, str]]:
    return [
        (event.record()["command"], event.record()["approval_id"])
        for event in await stored(world, "command-proposed")
    ]


def assert_paced(forced: list[Event], budget: int = BUDGET) -> None:
    """Check that no sliding minute has more orders than the budget."""
    times = sorted(event.occurred_at_ms for event in forced)
    for number, at_ms in enumerate(times):
        within = [other for other in times[: number + 1] if other > at_ms - MINUTE_MS]
        assert len(within) <= budget, times


# --- four eyes -----------------------------------------------------------------------------------


async def test_without_a_document_a_batch_needs_two_and_runs_when_another_approved(
    mall: World,
) -> None:
    drafted = await created(mall, Kind.SALE)
    assert await refused(submitted(mall, drafted.batch_id)) is Reason.APPROVAL_REQUIRED
    assert not await mall.office.batches.turn()
    ((command, approval_id),) = await all_proposals(mall)
    assert command == "submit-batch"
    own = mall.ask(approval_id, caller="web", origin=ALICE)
    assert await refused(mall.office.approvals.approve(Approve(own, approval_id, "mine"))) is (
        Reason.SAME_PERSON
    )
    other = mall.ask(approval_id, caller="web", origin=BOB)
    await mall.office.approvals.approve(Approve(other, approval_id, "seen"))
    assert (await submitted(mall, drafted.batch_id)).behind.approved_by == "web u-bob"
    await to_its_end(mall, drafted.batch_id)
    sold = await stored(mall, "credit-sold")
    assert len(sold) == 3
    assert {(event.origin.who, event.origin.approved_by) for event in sold} == {
        ("web u-alice", "web u-bob")
    }


async def test_a_size_is_what_one_person_may_still_do(mall: World) -> None:
    await alone(mall, batch=3, force_off=None)
    small, large = [await created(mall, Kind.FORCE_OFF, n, n) for n in (3, 4)]
    assert (await submitted(mall, small.batch_id)).status is Status.RUNNING
    assert await refused(submitted(mall, large.batch_id, 51)) is Reason.APPROVAL_REQUIRED


async def test_amounts_that_one_person_may_adjust_each_count_together(mall: World) -> None:
    await alone(mall, batch=None, adjustment=1_000)
    within, above = [await created(mall, Kind.ADJUSTMENT, n, n) for n in (2, 3)]  # 500 each
    assert (await submitted(mall, within.batch_id)).status is Status.RUNNING
    assert await refused(submitted(mall, above.batch_id, 51)) is Reason.APPROVAL_REQUIRED
    taken = draft(mall, Kind.ADJUSTMENT, names(Kind.ADJUSTMENT, 3), 7, amount_minor=-500)
    below = await mall.office.batches.create(taken)
    assert below.total_minor == 1_500  # signs do not let amounts cancel out
    assert await refused(submitted(mall, below.batch_id, 52)) is Reason.APPROVAL_REQUIRED


async def test_what_one_person_may_not_force_off_no_batch_of_one_does(mall: World) -> None:
    await alone(mall, batch=None)
    drafted = await created(mall, Kind.FORCE_OFF, 1)
    assert await refused(submitted(mall, drafted.batch_id)) is Reason.APPROVAL_REQUIRED
    on = await created(mall, Kind.FORCE_ON, 1, 1)  # it keeps power, and without an end
    assert await refused(submitted(mall, on.batch_id, 51)) is Reason.APPROVAL_REQUIRED
    prepaid = await created(mall, Kind.RESTORE_PREPAID, 1, 2)
    assert (await submitted(mall, prepaid.batch_id, 52)).status is Status.RUNNING


async def test_relays_forced_on_are_so_without_an_end_however_few_they_are(mall: World) -> None:
    """A week of kept power that one person may order is no batch of relays that stay on."""
    await alone(mall, batch=None, keep_power=7)
    drafted = await created(mall, Kind.FORCE_ON, 1)
    assert await refused(submitted(mall, drafted.batch_id)) is Reason.APPROVAL_REQUIRED


async def test_a_document_that_grew_stricter_refuses_what_was_not_approved(mall: World) -> None:
    await alone(mall, **EVERYTHING, authority=None)
    drafted = await created(mall, Kind.FORCE_OFF)
    await submitted(mall, drafted.batch_id)
    said = rules_text({"batch": None})
    request = mall.ask(said, caller="web", origin=ALICE)
    await mall.may_alone(said, request)
    await to_its_end(mall, drafted.batch_id)
    _, results = await mall.office.batches.results(drafted.batch_id)
    assert {result.reason for result in results.values()} == {Reason.APPROVAL_REQUIRED.value}
    assert await all_proposals(mall) == []  # a batch makes no proposal a target


@pytest.mark.parametrize("kind", [Kind.FORCE_OFF, Kind.SALE, Kind.ADJUSTMENT, Kind.PRICE])
async def test_what_has_become_anothers_since_the_draft_is_skipped(mall: World, kind: Kind) -> None:
    await alone(mall, **EVERYTHING, authority=None, transfer=None, move=None)
    for number in (1, 2, 3):
        await mall.assign(f"M{number}", f"A{number}")
    drafted = await created(mall, kind)
    await submitted(mall, drafted.batch_id)
    await moved(mall, PauseBatch, drafted.batch_id, 51)
    await mall.office.change(ChangeTenant(mall.ask(), "A1", "t-new", False, "let anew"))
    await mall.release("M2")
    await mall.assign("M2", "A4", 2_000)
    await moved(mall, ResumeBatch, drafted.batch_id, 52)
    await to_its_end(mall, drafted.batch_id)
    _, results = await mall.office.batches.results(drafted.batch_id)
    gone = {0, 1} if kind is Kind.FORCE_OFF else {0}
    for number, result in results.items():
        wanted = (Outcome.SKIPPED, "CHANGED_SINCE") if number in gone else (Outcome.DONE, "")
        assert (result.outcome, result.reason) == wanted
    assert len(results) == 3


# --- results, previews, the life of a batch ------------------------------------------------------


async def test_a_batch_of_sales_fills_an_account_up_to_its_ceiling_and_no_further(
    mall: World,
) -> None:
    await alone(mall, **EVERYTHING)
    await mall.policy("P3", ceiling_minor=500)
    await mall.office.change(ChangeTerms(mall.ask("t"), "A1", None, "P3", "a small shop"))
    await mall.sell(1)
    drafted = await created(mall, Kind.SALE, 2)
    preview = await mall.office.batches.preview(drafted.batch_id)
    assert preview.reasons == {"ABOVE_CEILING": 1}
    await submitted(mall, drafted.batch_id)
    await to_its_end(mall, drafted.batch_id)
    assert await outcomes(mall, drafted.batch_id) == {Outcome.REFUSED: 1, Outcome.DONE: 1}
    credited = [(await mall.office.account(name)).credited_nano for name in ("A1", "A2")]
    assert credited == [1 * 10**7, 500 * 10**7]


@pytest.mark.parametrize("moment", [PauseBatch, CancelBatch])
async def test_no_round_begins_that_somebody_has_paused_in_that_moment(
    mall: World, monkeypatch: pytest.MonkeyPatch, moment: Any
) -> None:
    await alone(mall, **EVERYTHING)
    drafted = await created(mall, Kind.FORCE_OFF)
    await submitted(mall, drafted.batch_id)
    budgets = mall.office.batches._budgets

    async def and_then(site_ids: Any) -> Any:
        found = await budgets(site_ids)
        await moved(mall, moment, drafted.batch_id, 70)
        return found

    monkeypatch.setattr(mall.office.batches, "_budgets", and_then)
    await mall.office.batches.turn()
    assert await stored(mall, "batch-round-begun") == await stored(mall, "relay-forced") == []


async def test_each_target_has_its_result_and_one_refusal_stops_no_other(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    await mall.office.order(ForceRelay(mall.ask("M2"), "M2", "off", "works"))
    asked = draft(mall, Kind.FORCE_OFF, ["M1", "M2", "M3"])
    drafted = await mall.office.batches.create(asked)
    preview = await mall.office.batches.preview(drafted.batch_id)
    assert preview.outcomes == {Outcome.DONE: 2, Outcome.SKIPPED: 1}
    assert preview.states == {"prepaid": 2, "forced-off": 1}
    assert preview.sites == {"S1": 3}
    assert preview.needs_two == ""
    assert len(await stored(mall, "relay-forced")) == 1  # a preview does nothing
    await submitted(mall, drafted.batch_id)
    await to_its_end(mall, drafted.batch_id)
    _, results = await mall.office.batches.results(drafted.batch_id)
    assert [results[number].outcome for number in range(3)] == [
        Outcome.DONE,
        Outcome.SKIPPED,
        Outcome.DONE,
    ]
    assert results[1].reason == Reason.NOTHING_CHANGES.value
    state = await mall.book.state_of(Meter, "M1")
    assert state is not None
    assert results[0].revision == state.answers.revision


@pytest.mark.parametrize("kind", list(Kind))
async def test_what_a_preview_counts_is_what_comes_of_it_and_it_writes_nothing(
    mall: World, kind: Kind
) -> None:
    """Of targets that are so already, another tenant's, closed, above their ceiling, and others."""
    await alone(mall, **EVERYTHING, move=None, closing=None, transfer=None)
    await mall.policy("P3", ceiling_minor=400)
    await mall.assign("M3", "A3")
    drafted = await created(mall, kind, 6)
    for position, meter_id in (("off", "M1"), ("on", "M2")):
        await mall.office.order(ForceRelay(mall.ask(meter_id), meter_id, position, "works"))
    await mall.office.change(ChangeTenant(mall.ask("t"), "A3", "u-new", True, "moves in"))
    await mall.office.change(ChangeTerms(mall.ask("a1"), "A1", "T2", None, "at night"))
    await mall.office.change(ChangeTerms(mall.ask("a2"), "A2", None, "P2", "late"))
    await mall.office.change(ChangeTerms(mall.ask("a4"), "A4", None, "P3", "small"))
    with pytest.raises(Retriable):
        await mall.close("A5")
    head = await mall.store.head()
    preview = await mall.office.batches.preview(drafted.batch_id)
    tried = await mall.office.batches.tried(drafted, range(6))
    assert await mall.store.head() == head
    assert preview.needs_two == ""
    await submitted(mall, drafted.batch_id)
    await to_its_end(mall, drafted.batch_id)
    _, results = await mall.office.batches.results(drafted.batch_id)
    came = [results[number] for number in range(6)]
    assert preview.outcomes == Counter(each.outcome for each in came)
    assert preview.reasons == Counter(each.reason for each in came if each.reason)
    assert [each.message for each in tried] == [each.message for each in came]
    assert len(preview.outcomes) > 1 or kind is Kind.EXPORT, "or it were no question"


@pytest.mark.parametrize("mistake", [AssertionError("sites are known"), Bug("no"), KeyError("S1")])
async def test_a_target_that_cannot_be_decided_is_refused_and_stops_no_other(
    mall: World, monkeypatch: pytest.MonkeyPatch, mistake: Exception
) -> None:
    """Neither the rest of its batch, nor another batch that the budget of the site has room for."""
    await alone(mall, **EVERYTHING)
    batches_ = mall.office.batches
    one = await created(mall, Kind.FORCE_OFF, 10, 1)
    two = await batches_.create(draft(mall, Kind.FORCE_OFF, ["M11"], 2))
    prepared = batches_._prepared

    async def breaks(state: Batch, number: int, by: str) -> Any:
        if state.batch_id == one.batch_id and number == 3:
            raise mistake
        return await prepared(state, number, by)

    monkeypatch.setattr(batches_, "_prepared", breaks)
    assert (await batches_.preview(one.batch_id)).reasons == {Reason.INTERNAL.value: 1}
    await submitted(mall, one.batch_id, 51)
    await submitted(mall, two.batch_id, 52)
    for batch_id in (two.batch_id, one.batch_id):
        await to_its_end(mall, batch_id)
    assert await outcomes(mall, one.batch_id) == {Outcome.DONE: 9, Outcome.REFUSED: 1}
    assert await outcomes(mall, two.batch_id) == {Outcome.DONE: 1}
    _, results = await batches_.results(one.batch_id)
    assert results[3].reason == Reason.INTERNAL.value


async def test_a_store_that_is_away_refuses_no_target(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alone(mall, **EVERYTHING)
    drafted = await created(mall, Kind.FORCE_OFF, 2)
    await submitted(mall, drafted.batch_id)
    submit = mall.book.submit

    async def is_away(kind: Any, *asked: Any) -> Any:
        if kind is Meter:
            raise Retriable("the store is away")
        return await submit(kind, *asked)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(mall.book, "submit", is_away)
        await mall.office.batches.turn()
    await to_its_end(mall, drafted.batch_id)
    assert await outcomes(mall, drafted.batch_id) == {Outcome.DONE: 2}


async def test_a_preview_says_who_must_approve_and_what_would_be_refused(mall: World) -> None:
    await alone(mall)
    with suppress(Retriable):
        await mall.close("A2")
    asked = draft(mall, Kind.SALE, ["A1", "A2"])
    drafted = await mall.office.batches.create(asked)
    preview = await mall.office.batches.preview(drafted.batch_id)
    assert "batch of 2 targets needs a second person" in preview.needs_two
    assert preview.reasons == {Reason.ACCOUNT_NOT_OPEN.value: 1}
    assert await stored(mall, "sale-refused") == []


async def test_targets_are_read_some_at_once_and_one_that_is_wrong_is_told(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is a network away takes some at once, and a draft of ten thousand is in time."""
    state_of, under_way, most = mall.book.state_of, 0, 0

    async def slow(*of: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return await state_of(*of)

    monkeypatch.setattr(mall.book, "state_of", slow)
    drafted = await created(mall, Kind.SALE, 25)
    assert [target.target_id for target in drafted.targets] == names(Kind.SALE, 25)
    assert 2 < most <= TARGETS_AT_A_STRETCH
    asked = draft(mall, Kind.SALE, ["A1", "B1", "B2"], 2)
    with pytest.raises(InvalidInput, match="there is no account"):
        await mall.office.batches.create(asked)


async def test_amounts_of_a_list_are_each_its_own(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    asked = replace(draft(mall, Kind.SALE, ["A1", "A2"]), listed=(("A1", None), ("A2", 700)))
    drafted = await mall.office.batches.create(asked)
    await submitted(mall, drafted.batch_id)
    await to_its_end(mall, drafted.batch_id)
    sold = {
        e.record()["account_id"]: e.record()["amount_minor"]
        for e in await stored(mall, "credit-sold")
    }
    assert sold == {"A1": 500, "A2": 700}


async def test_a_paused_batch_stands_still_and_goes_on(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    drafted = await created(mall, Kind.FORCE_OFF, 15)
    await submitted(mall, drafted.batch_id)
    assert await mall.office.batches.turn()
    await moved(mall, PauseBatch, drafted.batch_id, 70)
    mall.clock.at_ms += MINUTE_MS
    assert not await mall.office.batches.turn()
    assert (await outcomes(mall, drafted.batch_id))[Outcome.DONE] == BUDGET
    await moved(mall, ResumeBatch, drafted.batch_id, 71)
    assert (await to_its_end(mall, drafted.batch_id)).status is Status.FINISHED
    assert (await outcomes(mall, drafted.batch_id))[Outcome.DONE] == 15


async def test_what_waits_is_told_with_the_minute_in_which_it_is_asked(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    drafted = await created(mall, Kind.FORCE_OFF, 25)
    await submitted(mall, drafted.batch_id)
    began_ms = mall.clock.at_ms
    await mall.office.batches.turn()
    (pace,) = await mall.office.batches.paces(await mall.office.batches.of(drafted.batch_id))
    assert (pace.waiting, pace.per_minute) == (15, BUDGET)
    assert pace.next_at_ms == began_ms + MINUTE_MS
    assert pace.last_at_ms == began_ms + 2 * MINUTE_MS


async def test_what_goes_on_is_counted_and_what_waits_for_a_budget(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    under_way = mall.office.batches.under_way
    assert await under_way() == UnderWay(0, 0, 0, 0, 0)
    first = await created(mall, Kind.FORCE_OFF, 25)
    assert await under_way() == UnderWay(0, 0, 0, 0, 0), "a draft does nothing"
    await submitted(mall, first.batch_id)
    began_ms = (await mall.office.batches.of(first.batch_id)).submitted_at_ms
    assert began_ms
    assert await under_way() == UnderWay(1, 0, began_ms, 0, began_ms), (
        "its first round comes at once"
    )
    mall.clock.at_ms += 1_000
    await mall.office.batches.turn()
    assert await under_way() == UnderWay(1, 0, began_ms, 25 - BUDGET, began_ms + 1_000)
    await moved(mall, PauseBatch, first.batch_id, 70)
    second = await created(mall, Kind.SALE, 3, 1)
    await submitted(mall, second.batch_id, 51)
    assert await under_way() == UnderWay(1, 1, began_ms, 0, began_ms + 1_000), (
        "what is paused waits for a person"
    )
    await to_its_end(mall, second.batch_id)
    await moved(mall, CancelBatch, first.batch_id, 71)
    assert await under_way() == UnderWay(0, 0, 0, 0, 0)


async def test_two_batches_of_one_site_share_its_budget(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    first = await created(mall, Kind.FORCE_ON, 8)
    second = await mall.office.batches.create(
        draft(mall, Kind.FORCE_OFF, [f"M{number}" for number in range(9, 21)], 1)
    )
    await submitted(mall, first.batch_id, 50)
    await submitted(mall, second.batch_id, 51)
    await to_its_end(mall, first.batch_id)
    await to_its_end(mall, second.batch_id)
    forced = await stored(mall, "relay-forced")
    assert len(forced) == 20
    assert_paced(forced)


async def test_a_round_that_was_broken_off_keeps_its_part_of_the_budget(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows which of its relays were asked: another batch counts them all."""
    await alone(mall, **EVERYTHING)
    first = await created(mall, Kind.FORCE_ON, 8)
    others = [f"M{number}" for number in range(9, 21)]
    second = await mall.office.batches.create(draft(mall, Kind.FORCE_OFF, others, 1))
    await submitted(mall, first.batch_id, 50)
    await submitted(mall, second.batch_id, 51)
    submit = mall.book.submit

    async def is_away(kind: Any, entity_id: str, *asked: Any) -> Any:
        if entity_id == "M8":
            raise Retriable("the store is away")
        return await submit(kind, entity_id, *asked)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(mall.book, "submit", is_away)
        await mall.office.batches.turn()
    assert len((await mall.office.batches.of(first.batch_id)).open_round) == 8
    assert (await outcomes(mall, second.batch_id))[Outcome.DONE] == BUDGET - 8
    await to_its_end(mall, second.batch_id)
    forced = await stored(mall, "relay-forced")
    assert len(forced) == 20
    assert_paced(forced)


async def test_money_is_not_paced(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    drafted = await created(mall, Kind.SALE, 25)
    await submitted(mall, drafted.batch_id)
    await mall.office.batches.turn()
    assert (await outcomes(mall, drafted.batch_id))[Outcome.DONE] == 25


async def test_a_repeat_drafts_no_second_batch_and_other_content_is_refused(mall: World) -> None:
    asked = draft(mall, Kind.SALE, ["A1"])
    first = await mall.office.batches.create(asked)
    assert await mall.office.batches.create(asked) == first
    other = draft(mall, Kind.SALE, ["A1", "A2"])
    assert await refused(mall.office.batches.create(other)) is Reason.REQUEST_ID_REUSED


async def test_a_legal_entity_has_so_many_drafts_and_no_more(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "DRAFTS_MAX", 2)
    first = await created(mall, Kind.SALE, 1, 0)
    await created(mall, Kind.SALE, 1, 1)
    third = draft(mall, Kind.SALE, ["A1"], 2)
    for validate_only in (True, False):
        asked = mall.office.batches.create(third, validate_only=validate_only)
        assert await refused(asked) is Reason.TOO_MANY_DRAFTS
    assert (await created(mall, Kind.SALE, 1, 0)).batch_id == first.batch_id, "a repeat is none"
    await mall.site("S2", entity="LE2")
    await mall.tariff("T9", legal_entity="LE2")
    await mall.policy("P9", legal_entity="LE2")
    await mall.account("B1", site_id="S2", tariff_id="T9", policy_id="P9")
    await mall.office.batches.create(draft(mall, Kind.SALE, ["B1"], 3))
    await moved(mall, CancelBatch, first.batch_id, 70)
    assert (await mall.office.batches.create(third)).status is Status.DRAFT


async def test_validate_only_keeps_nothing(mall: World) -> None:
    asked = draft(mall, Kind.SALE, ["A1", "A2"])
    assert (await mall.office.batches.create(asked, validate_only=True)).total_minor == 1_000
    assert await stored(mall, "batch-created") == []


async def test_what_no_batch_can_be_is_refused_when_it_is_drafted(mall: World) -> None:
    await mall.site("S2", entity="LE2")
    await mall.gateway("G2", address="127.0.0.1:503", site_id="S2")
    await mall.meter("M99", gateway_id="G2")
    for kind, targets, reason in (
        (Kind.FORCE_OFF, ["M1", "M0"], Reason.METER_NOT_FOUND),
        (Kind.SALE, ["A0"], Reason.ACCOUNT_NOT_FOUND),
        (Kind.SALE, ["A1", "A1"], Reason.INVALID_ARGUMENT),
        (Kind.FORCE_OFF, ["M1", "M99"], Reason.LEGAL_ENTITY_MISMATCH),
    ):
        assert await refused(mall.office.batches.create(draft(mall, kind, targets))) is reason
    nothing = draft(mall, Kind.SALE, ["A1"], amount_minor=0)
    assert await refused(mall.office.batches.create(nothing)) is Reason.AMOUNT_NOT_POSITIVE
    filtered = replace(draft(mall, Kind.SALE, []), filter="status = open")
    assert await refused(mall.office.batches.create(filtered)) is Reason.SELECTION_UNAVAILABLE


async def test_a_batch_moves_only_where_it_can(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    drafted = await created(mall, Kind.SALE, 1)
    assert await refused(moved(mall, PauseBatch, drafted.batch_id, 80)) is Reason.BATCH_STATE
    await submitted(mall, drafted.batch_id)
    assert await refused(submitted(mall, drafted.batch_id, 51)) is Reason.BATCH_STATE
    await to_its_end(mall, drafted.batch_id)
    for number, made in enumerate((PauseBatch, ResumeBatch, CancelBatch), 81):
        assert await refused(moved(mall, made, drafted.batch_id, number)) is Reason.BATCH_STATE
    assert await refused(moved(mall, CancelBatch, "none", 90)) is Reason.BATCH_NOT_FOUND


async def test_a_filter_is_resolved_once_and_its_instant_is_kept(mall: World) -> None:
    class Finding:
        asked: list[tuple[Of, str]] = []  # noqa: RUF012 - of this test

        async def find(self, of: Of, filter_: str, at_most: int) -> Selected:
            assert at_most == batches.TARGETS_MAX
            self.asked.append((of, filter_))
            return Selected(("A1", "A3"), 1_234)

    mall.office.batches.drafting.selection = Finding()
    asked = replace(draft(mall, Kind.SALE, []), filter="status = open", amount_minor=100)
    first = await mall.office.batches.create(asked)
    assert [target.target_id for target in first.targets] == ["A1", "A3"]
    assert (first.filter, first.as_of_ms) == ("status = open", 1_234)
    assert await mall.office.batches.create(asked) == first
    assert Finding.asked == [(Of.ACCOUNTS, "status = open")]


async def test_an_authority_of_reporting_that_is_not_there_is_a_wrong_setting(
    tmp_path: Path,
) -> None:
    with pytest.raises(WrongSettings, match=r"WATTVEND_VENDING_REPORTING_CA=.*ca\.crt"):
        async with reporting.opened("reporting:27002", tmp_path / "ca.crt"):
            pass


async def test_ten_thousand_targets_are_events_of_bounded_size(mall: World) -> None:
    accounts = tuple(
        batches.Target(f"account-with-a-long-name-{number:05}", "S1", 100)
        for number in range(batches.TARGETS_MAX)
    )
    request = mall.ask("many")
    command = batching.CreateBatch(request, terms(Kind.SALE), "LE1", "CNY", "", None, accounts)
    batch_id = batching.batch_id_of(request)
    await mall.book.submit(Batch, batch_id, lambda state: batching.decide(state, command))
    sizes = [
        len(each.data)
        for each in await mall.store.read_all(0, 100_000)
        if each.type == BatchTargets.SUBJECT
    ]
    assert len(sizes) == batches.TARGETS_MAX // batches.TARGETS_PER_EVENT
    assert max(sizes) < 100_000
    state = await mall.office.batches.of(batch_id)
    assert state.targets == accounts
    assert state.total_minor == 1_000_000
