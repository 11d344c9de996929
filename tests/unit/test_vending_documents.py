"""Goal: a document lives as its page says, and what it says is published once, by whoever may.

Method: the office on a real SQLite file; the story of a document dies at each of its appends and is
told again after a restart.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.rpc import error_details_pb2
from prometheus_client import CollectorRegistry

from services.common.kernel import filters
from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call, status_of
from services.vending.adapters import stores
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.api.documents import FILTER_FIELDS, DocumentApi
from services.vending.adapters.database import Statement
from services.vending.application.documents import Paper
from services.vending.domain.approval import Status, approval_id_of
from services.vending.domain.decisions import Request
from services.vending.domain.document import (
    Document,
    Kind,
    State,
    Submit,
    Withdraw,
    document_id_of,
)
from services.vending.domain.event_store import NO_EVENTS, StoredEvent, StreamId
from services.vending.domain.orders import DAY_MS
from services.vending.domain.origin import Origin
from services.vending.domain.policy import Policy, PublishPolicy
from services.vending.domain.tables import Undecided
from services.vending.domain.tariff import PublishTariff
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_approvals import (
    ALICE,
    BOB,
    approve,
    decline,
    of_type,
    publish,
)
from tests.unit.test_vending_office import refused
from tests.unit.vending_crashing import Died, at_every_step, mortal
from tests.unit.vending_world import LEAD_MS, T0_MS, World
from wattvend.vending.v1 import documents_pb2 as pb
from wattvend.vending.v1 import vending_pb2

NOBODY_ALONE = {"authority": None}
PRICE_MICRO = 900_000


def by_alice(world: World, *content: object) -> Request:
    return world.ask(*content, caller="web", origin=ALICE)


def same(world: World, number: int, *content: object, by: Origin = ALICE) -> Request:
    return world.ask(*content, request_id=UUID(int=number), caller="web", origin=by)


def tariff(request: Request, **changed: Any) -> PublishTariff:
    content: dict[str, Any] = {
        "tariff_id": "T1",
        "commodity": "electricity",
        "currency": "CNY",
        "legal_entity": "LE1",
        "price_micro": PRICE_MICRO,
        "plan": None,
        "effective_at_ms": 0,
        "lead_ms": LEAD_MS,
    }
    return PublishTariff(request, **(content | changed))


def policy(request: Request, **changed: Any) -> PublishPolicy:
    content: dict[str, Any] = {
        "policy_id": "P1",
        "currency": "CNY",
        "alarm_1_minor": 2000,
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
    return PublishPolicy(request, **(content | changed))


async def draft(
    world: World, publication: PublishTariff | PublishPolicy | None = None, replaces: str = ""
) -> str:
    said = publication or tariff(by_alice(world, "draft"))
    return (await world.office.documents.draft(said.request, said, replaces)).document.document_id


async def submit(world: World, document_id: str, by: Origin = ALICE) -> Paper:
    request = world.ask(document_id, caller="web", origin=by)
    return await world.office.documents.submit(Submit(request, document_id))


async def withdraw(world: World, document_id: str, by: Origin = ALICE) -> Paper:
    request = world.ask(document_id, caller="web", origin=by)
    return await world.office.documents.withdraw(Withdraw(request, document_id, "typed wrong"))


async def state(world: World, document_id: str) -> State:
    return (await world.office.documents.paper(document_id)).life.state


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        yield opened


# --- a life --------------------------------------------------------------------------------------


async def test_a_tariff_lives_from_the_draft_to_the_version_that_takes_its_place(
    mall: World,
) -> None:
    await publish(mall, **NOBODY_ALONE)
    document_id = await draft(mall)
    assert await state(mall, document_id) is State.DRAFT
    submitted = await submit(mall, document_id)
    assert submitted.life.state is State.SUBMITTED
    assert submitted.life.by == ALICE
    assert await submit(mall, document_id, BOB) == submitted, "it was submitted already"
    assert await refused(approve(mall, submitted.approval_id, origin=ALICE)) is Reason.SAME_PERSON
    await approve(mall, submitted.approval_id)
    paper = await mall.office.documents.paper(document_id)
    assert paper.life.state is State.SCHEDULED
    assert paper.life.version is not None
    assert (paper.life.version.number, paper.life.version.begins_ms) == (2, T0_MS + LEAD_MS)
    assert (paper.life.by, paper.life.decided_by) == (ALICE, BOB)
    mall.clock.at_ms = T0_MS + LEAD_MS - 1
    assert await state(mall, document_id) is State.SCHEDULED
    mall.clock.at_ms += 1
    assert await state(mall, document_id) is State.IN_FORCE
    second = (await submit(mall, await draft(mall))).approval_id
    await approve(mall, second)
    assert await state(mall, document_id) is State.IN_FORCE
    mall.clock.at_ms += LEAD_MS
    assert await state(mall, document_id) is State.SUPERSEDED
    versions = await mall.office.documents.versions(Kind.TARIFF, "T1")
    assert [where for _, where in versions] == [
        State.SUPERSEDED,
        State.SUPERSEDED,
        State.IN_FORCE,
    ]


async def test_what_is_published_is_word_for_word_what_was_drafted(mall: World) -> None:
    await publish(mall, **NOBODY_ALONE)
    said = {"alarm_1_minor": 7_000, "fee_ppm": 1_000, "fee_minor": 3, "ceiling_minor": 90_000}
    document_id = await draft(mall, policy(by_alice(mall, "draft"), **said))
    approval_id = (await submit(mall, document_id)).approval_id
    proposal = await approve(mall, approval_id)
    assert (proposal.status, proposal.command) == (Status.EXECUTED, "publish-policy")
    assert json.loads(proposal.content)["document_id"] == document_id
    (_, published) = await of_type(mall, "policy-published")
    assert published.record() | {"document_id": document_id, "fee_ppm": 1_000, "fee_minor": 3} == (
        published.record()
    )
    assert published.origin == Origin("web", "u-alice", "", "web u-bob")
    now = await mall.book.state_of(Policy, "P1")
    assert now is not None
    assert (now.alarm_1_nano, now.ceiling_nano) == (70_000_000_000, 900_000_000_000)


async def test_where_one_person_may_a_draft_is_published_when_it_is_submitted(mall: World) -> None:
    document_id = await draft(mall)
    paper = await submit(mall, document_id)
    assert (paper.life.state, paper.life.by, paper.approval_id) == (State.SCHEDULED, ALICE, "")
    assert await submit(mall, document_id) == paper
    assert len(await of_type(mall, "tariff-published")) == 2


async def test_a_draft_of_something_new_is_its_first_version(mall: World) -> None:
    document_id = await draft(mall, tariff(by_alice(mall, "new"), tariff_id="T9"))
    paper = await submit(mall, document_id)
    assert (paper.document.base_version, paper.life.state) == (0, State.IN_FORCE)


# --- what is refused -----------------------------------------------------------------------------


async def test_whatever_publishing_would_refuse_is_told_when_it_is_drafted(mall: World) -> None:
    await publish(mall, **NOBODY_ALONE)

    def asked() -> Request:
        return by_alice(mall, "draft")

    for publication, reason in (
        (tariff(asked(), currency="EUR"), Reason.CURRENCY_MISMATCH),
        (tariff(asked(), legal_entity="LE2"), Reason.LEGAL_ENTITY_MISMATCH),
        (tariff(asked(), effective_at_ms=T0_MS + 1), Reason.EFFECTIVE_TOO_EARLY),
        (tariff(asked(), effective_at_ms=T0_MS - 1), Reason.EFFECTIVE_IN_PAST),
        (policy(asked(), currency="EUR"), Reason.CURRENCY_MISMATCH),
        (policy(asked(), effective_at_ms=T0_MS - 1), Reason.EFFECTIVE_IN_PAST),
        (policy(asked(), policy_id="P9", effective_at_ms=T0_MS + 1), Reason.INVALID_ARGUMENT),
    ):
        assert await refused(draft(mall, publication)) is reason
    assert await of_type(mall, "document-drafted") == []


async def test_a_past_instant_is_refused_and_an_adjustment_run_is_offered(mall: World) -> None:
    with pytest.raises(InvalidInput) as past:
        await mall.tariff(price_micro=1, effective_at_ms=T0_MS - DAY_MS)
    refused_as = past.value
    assert f"adjustment run from {T0_MS - DAY_MS} on (wattvend tariff adjust)" in refused_as.message
    offers = {"earliest_ms": str(T0_MS + LEAD_MS), "adjust_from_ms": str(T0_MS - DAY_MS)}
    assert refused_as.offers == offers
    status = status_of(refused_as.reason, refused_as.message, refused_as.field, refused_as.offers)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert dict(info.metadata) == offers | {"field": "effective_at_ms"}


async def test_a_draft_whose_base_has_moved_on_is_neither_submitted_nor_published(
    mall: World,
) -> None:
    await publish(mall, **NOBODY_ALONE)
    first, second, third = [await draft(mall) for _ in range(3)]
    waiting = await submit(mall, first)
    too_late = await submit(mall, second)
    await approve(mall, waiting.approval_id)
    paper = await mall.office.documents.paper(third)
    assert (paper.life.state, paper.life.is_stale) == (State.DRAFT, True)
    assert await refused(submit(mall, third)) is Reason.DOCUMENT_STALE
    proposal = await approve(mall, too_late.approval_id)
    assert proposal.status is Status.FAILED
    paper = await mall.office.documents.paper(second)
    assert paper.life.state is State.FAILED
    assert paper.life.failure is not None
    assert paper.life.failure.reason == Reason.DOCUMENT_STALE
    assert len(await of_type(mall, "tariff-published")) == 2


async def test_who_declines_says_why_and_a_change_is_a_new_draft_that_names_it(
    mall: World,
) -> None:
    await publish(mall, **NOBODY_ALONE)
    document_id = await draft(mall)
    await decline(mall, (await submit(mall, document_id)).approval_id)
    paper = await mall.office.documents.paper(document_id)
    assert (paper.life.state, paper.life.reason) == (State.DECLINED, "not today")
    assert await refused(submit(mall, document_id)) is Reason.APPROVAL_DECLINED
    again = await draft(mall, tariff(by_alice(mall, "2"), price_micro=850_000), document_id)
    assert (await mall.office.documents.paper(again)).document.replaces == document_id
    other = tariff(by_alice(mall, "3"), tariff_id="T9")
    assert await refused(draft(mall, other, document_id)) is Reason.INVALID_ARGUMENT
    nothing = tariff(by_alice(mall, "4"))
    assert await refused(draft(mall, nothing, str(UUID(int=9)))) is Reason.DOCUMENT_NOT_FOUND


async def test_a_draft_that_is_replaced_is_withdrawn_also_when_it_was_submitted(
    mall: World,
) -> None:
    await publish(mall, **NOBODY_ALONE)
    first = await draft(mall)
    second = await draft(mall, replaces=first)
    assert await state(mall, first) is State.WITHDRAWN
    assert await refused(submit(mall, first)) is Reason.DOCUMENT_DECIDED
    waiting = await submit(mall, second)
    third = await draft(mall, replaces=second)
    assert await state(mall, second) is State.DECLINED
    assert await refused(approve(mall, waiting.approval_id)) is Reason.APPROVAL_DECIDED
    paper = await mall.office.documents.paper(second)
    assert paper.life.reason == f"replaced by document {third}"


@pytest.mark.parametrize("is_submitted", [False, True])
async def test_where_a_draft_is_there_nobody_publishes_what_it_replaces_whatever_died(
    tmp_path: Path, is_submitted: bool
) -> None:
    """Also where its drafter never asks again: what is replaced is withdrawn before."""
    for dies_at in range(4):
        path = tmp_path / f"{dies_at}.sqlite"
        async with mortal(path) as (world, store):
            await world.mall()
            await publish(world, **NOBODY_ALONE)
            wrong = await draft(world)
            if is_submitted:
                await submit(world, wrong)
            right = document_id_of(same(world, 7, "right"))
            store.arm(dies_at)
            with suppress(Died):
                await draft(world, tariff(same(world, 7, "right"), price_micro=910_000), wrong)
            assert store.dead
        async with vending_world.world(path) as again:
            await again.office.complete()
            was = await state(again, wrong)
            assert was in {State.WITHDRAWN, State.DECLINED} or dies_at == 0
            with suppress(InvalidInput):
                await approve(again, (await submit(again, wrong)).approval_id)
            is_there = await again.book.state_of(Document, right) is not None
            assert is_there == (dies_at == 3)
            assert await state(again, wrong) is (State.SCHEDULED if dies_at == 0 else was)


async def test_what_a_draft_would_replace_stays_where_it_is_refused(mall: World) -> None:
    first = await draft(mall)
    late = tariff(by_alice(mall, "late"), effective_at_ms=1)
    assert await refused(draft(mall, late, first)) is Reason.EFFECTIVE_IN_PAST
    assert await state(mall, first) is State.DRAFT


async def test_a_request_submits_one_document_and_its_repeat_the_same(mall: World) -> None:
    await publish(mall, **NOBODY_ALONE)
    one, other = await draft(mall), await draft(mall)
    asked = Submit(same(mall, 7, one), one)
    submitted = await mall.office.documents.submit(asked)
    assert await mall.office.documents.submit(asked) == submitted
    for reused in (Submit(same(mall, 7, other), other), Submit(same(mall, 7, "changed"), one)):
        assert await refused(mall.office.documents.submit(reused)) is Reason.REQUEST_ID_REUSED
    assert await state(mall, other) is State.DRAFT
    assert len(await of_type(mall, "document-submitted")) == 1


async def test_a_submission_that_died_publishes_nothing_that_was_withdrawn_since(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object) -> None:
        raise Died

    document_id = await draft(mall)
    asked = Submit(same(mall, 7, document_id), document_id)
    with monkeypatch.context() as meanwhile, suppress(Died):
        meanwhile.setattr(mall.office.approvals, "ask", dies)
        await mall.office.documents.submit(asked)
    assert await state(mall, document_id) is State.DRAFT
    await withdraw(mall, document_id)
    assert await refused(mall.office.documents.submit(asked)) is Reason.DOCUMENT_DECIDED
    assert len(await of_type(mall, "tariff-published")) == 1, "that of the mall"


async def test_nobody_approves_in_time_and_the_draft_has_expired(mall: World) -> None:
    await publish(mall, **NOBODY_ALONE)
    document_id = await draft(mall)
    await submit(mall, document_id)
    mall.clock.at_ms += 3 * DAY_MS
    assert await state(mall, document_id) is State.EXPIRED
    await mall.office.complete()
    assert await state(mall, document_id) is State.EXPIRED


# --- policies that apply later -------------------------------------------------------------------


async def scheduled(world: World, days: int, alarm_1_minor: int) -> str:
    content = {
        "alarm_1_minor": alarm_1_minor,
        "effective_at_ms": T0_MS + days * DAY_MS,
    }
    document_id = await draft(world, policy(by_alice(world, days), **content))
    await submit(world, document_id)
    return document_id


async def alarm_1_minor(world: World) -> int:
    now = await world.book.state_of(Policy, "P1")
    assert now is not None
    return now.alarm_1_nano // 10_000_000


async def test_a_policy_applies_from_its_instant_on_and_not_before(mall: World) -> None:
    document_id = await scheduled(mall, 1, 3_000)
    assert await state(mall, document_id) is State.SCHEDULED
    assert (await mall.office.complete(), await alarm_1_minor(mall)) == (0, 1_000)
    mall.clock.at_ms = T0_MS + DAY_MS
    assert await state(mall, document_id) is State.SCHEDULED, "nobody has brought it into force"
    assert (await mall.office.complete(), await alarm_1_minor(mall)) == (1, 3_000)
    assert await mall.office.complete() == 0
    assert await state(mall, document_id) is State.IN_FORCE
    *_, published = await of_type(mall, "policy-published")
    assert published.origin == ALICE, "who wanted it stands behind it"


async def test_what_waits_for_a_person_or_its_instant_is_counted(mall: World) -> None:
    assert await mall.tables.undecided() == Undecided(0, 0, 0)
    await scheduled(mall, 1, 3_000)
    await scheduled(mall, 2, 4_000)
    assert await mall.tables.undecided() == Undecided(0, 2, T0_MS + DAY_MS)
    await publish(mall, **NOBODY_ALONE)
    await submit(mall, await draft(mall))
    assert await mall.tables.undecided() == Undecided(1, 2, T0_MS + DAY_MS)
    mall.clock.at_ms = T0_MS + DAY_MS
    await mall.office.complete()
    assert await mall.tables.undecided() == Undecided(1, 1, T0_MS + 2 * DAY_MS)


async def test_of_two_that_are_scheduled_each_has_its_time(mall: World) -> None:
    first = await scheduled(mall, 1, 3_000)
    second = await scheduled(mall, 2, 4_000)
    mall.clock.at_ms = T0_MS + DAY_MS
    await mall.office.complete()
    assert [await state(mall, each) for each in (first, second)] == [
        State.IN_FORCE,
        State.SCHEDULED,
    ]
    mall.clock.at_ms = T0_MS + 2 * DAY_MS
    await mall.office.complete()
    assert await alarm_1_minor(mall) == 4_000
    assert await state(mall, first) is State.SUPERSEDED


async def test_a_later_version_that_comes_first_takes_the_place_of_a_scheduled_one(
    mall: World,
) -> None:
    first = await scheduled(mall, 3, 3_000)
    second = await scheduled(mall, 2, 4_000)
    assert await state(mall, first) is State.SUPERSEDED
    await mall.policy(alarm_1_minor=5_000)
    assert await state(mall, second) is State.SUPERSEDED
    mall.clock.at_ms = T0_MS + 9 * DAY_MS
    assert await mall.office.complete() == 0
    assert await alarm_1_minor(mall) == 5_000
    versions = await mall.office.documents.versions(Kind.POLICY, "P1")
    assert [(v.number, where) for v, where in versions] == [
        (1, State.SUPERSEDED),
        (2, State.SUPERSEDED),
        (3, State.SUPERSEDED),
        (4, State.IN_FORCE),
    ]


# --- what is published by mistake -----------------------------------------------------------------


async def test_a_version_that_has_not_begun_is_taken_back_and_what_stood_goes_on(
    mall: World,
) -> None:
    document_id = await draft(mall, tariff(by_alice(mall, "1"), effective_at_ms=T0_MS + DAY_MS))
    await submit(mall, document_id)
    request = by_alice(mall, "withdraw")
    command = Withdraw(request, document_id, "typed wrong")
    paper = await mall.office.documents.withdraw(command)
    assert (paper.life.state, paper.life.reason) == (State.WITHDRAWN, "typed wrong")
    assert paper.life.decided_by == ALICE
    assert await mall.office.documents.withdraw(command) == paper, "a repeat"
    assert await refused(withdraw(mall, document_id)) is Reason.DOCUMENT_DECIDED
    assert await refused(submit(mall, document_id)) is Reason.DOCUMENT_DECIDED
    first, second, third = [e.record() for e in await of_type(mall, "tariff-published")]
    assert (third["price_micro"], third["plan"]) == (first["price_micro"], None)
    assert third["effective_at_ms"] == second["effective_at_ms"] == T0_MS + DAY_MS
    mall.clock.at_ms = T0_MS + DAY_MS
    in_force = await mall.office._in_force("T1")
    assert in_force is not None
    assert in_force.price_micro == 800_000


async def test_a_policy_that_has_not_begun_is_taken_back_whole(mall: World) -> None:
    content = {"alarm_1_minor": 3_000, "rules": '{"grace_minutes":240}', "ceiling_minor": 90_000}
    stands = policy(by_alice(mall, "stands"), fee_ppm=10, overdraft_minor=5, **content)
    await mall.office.publish_policy(stands)
    document_id = await scheduled(mall, 2, 4_000)
    before = (await of_type(mall, "policy-published"))[-1].record()
    paper = await withdraw(mall, document_id)
    assert paper.life.state is State.WITHDRAWN
    mall.clock.at_ms = T0_MS + 2 * DAY_MS
    assert await mall.office.complete() == 1
    after = (await of_type(mall, "policy-published"))[-1].record()
    own = ("version", "occurred_at_ms", "caller", "request_id", "fingerprint")
    assert {k: v for k, v in after.items() if k not in own} == {
        k: v for k, v in before.items() if k not in own
    }


async def test_what_gave_way_to_a_version_does_not_come_back_when_that_is_taken_back(
    mall: World,
) -> None:
    gave_way = await scheduled(mall, 3, 3_000)
    await withdraw(mall, await scheduled(mall, 2, 4_000))
    for days in (2, 3):
        mall.clock.at_ms = T0_MS + days * DAY_MS
        await mall.office.complete()
        assert await alarm_1_minor(mall) == 1_000
    assert await state(mall, gave_way) is State.SUPERSEDED


async def test_only_the_last_version_that_is_to_come_is_taken_back(mall: World) -> None:
    first = await draft(mall, tariff(by_alice(mall, "1"), effective_at_ms=T0_MS + DAY_MS))
    await submit(mall, first)
    second = await draft(mall, tariff(by_alice(mall, "2"), effective_at_ms=T0_MS + 2 * DAY_MS))
    await submit(mall, second)
    assert await refused(withdraw(mall, first)) is Reason.DOCUMENT_DECIDED
    mall.clock.at_ms = T0_MS + 2 * DAY_MS - LEAD_MS + 1
    assert await refused(withdraw(mall, second)) is Reason.EFFECTIVE_TOO_EARLY
    mall.clock.at_ms = T0_MS + 2 * DAY_MS
    assert await refused(withdraw(mall, second)) is Reason.DOCUMENT_DECIDED


async def test_what_two_let_happen_two_take_back(mall: World) -> None:
    await publish(mall, **NOBODY_ALONE)
    document_id = await draft(mall, tariff(by_alice(mall, "1"), effective_at_ms=T0_MS + DAY_MS))
    await approve(mall, (await submit(mall, document_id)).approval_id)
    command = Withdraw(by_alice(mall, "withdraw"), document_id, "typed wrong")
    assert await refused(mall.office.documents.withdraw(command)) is Reason.APPROVAL_REQUIRED
    assert await state(mall, document_id) is State.SCHEDULED
    await approve(mall, approval_id_of(command.request))
    assert await state(mall, document_id) is State.SUPERSEDED
    paper = await mall.office.documents.withdraw(command)
    assert (paper.life.state, paper.life.decided_by) == (State.WITHDRAWN, ALICE)


# --- lists ---------------------------------------------------------------------------------------


async def test_documents_are_listed_by_what_they_are_now_and_by_pages(mall: World) -> None:
    await publish(mall, **NOBODY_ALONE)
    drafts = [await draft(mall) for _ in range(5)]
    await submit(mall, drafts[1])
    await withdraw(mall, drafts[3])

    wanted = filters.Match("state", "=", State.DRAFT.value)
    first, after = await mall.office.documents.page(wanted, 0, 2)
    assert after is not None
    second, end = await mall.office.documents.page(wanted, after, 2)
    found = [paper.document.document_id for paper in (*first, *second)]
    assert (found, end) == ([drafts[0], drafts[2], drafts[4]], None)
    with pytest.raises(InvalidInput):
        await mall.office.documents.paper(str(UUID(int=7)))
    assert await refused(mall.office.documents.versions(Kind.POLICY, "P7")) is (
        Reason.POLICY_NOT_FOUND
    )


def watched(world: World, patched: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every stream is added that is read from now on."""
    read: list[str] = []
    store_read = world.store.read

    async def reads(stream: StreamId, after: int = NO_EVENTS) -> Sequence[StoredEvent]:
        read.append(stream)
        return await store_read(stream, after)

    patched.setattr(world.store, "read", reads)
    return read


async def test_a_page_reads_the_streams_of_what_it_shows_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3
    found: dict[int, list[str]] = {}
    for count in (size, 20 * size):
        path = tmp_path / f"{count}.sqlite"
        async with vending_world.world(path) as written:
            await written.mall()
            await publish(written, **NOBODY_ALONE)
            drafts = [await draft(written) for _ in range(count)]
            for document_id in drafts[-size:]:
                await submit(written, document_id)
        async with vending_world.world(path) as again:
            read = watched(again, monkeypatch)
            for wanted in ("state = submitted", "tariff = tariffs/T1"):
                page, _ = await again.office.documents.page(
                    filters.parse(wanted, FILTER_FIELDS), 0, size
                )
                assert len(page) == size
            found[count] = read
    kinds = [sorted(stream.partition("-")[0] for stream in set(read)) for read in found.values()]
    # In the larger book the two pages show other documents: of each is read what it is made of.
    assert kinds == [
        [*["approval"] * pages * size, *["document"] * pages * size, "tariff"] for pages in (1, 2)
    ]


async def test_documents_of_an_earlier_release_are_listed_as_if_the_table_had_been_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.sqlite"
    async with vending_world.world(path) as before:
        await before.mall()
        lives = [await scheduled(before, days, 3_000 + days) for days in (3, 2, 4)]
        before.clock.at_ms = T0_MS + 2 * DAY_MS
        await before.office.complete()
        await publish(before, **NOBODY_ALONE)
        lives += [await draft(before) for _ in range(5)]
        for document_id in lives[3:6]:
            await submit(before, document_id)
        papers = [await before.office.documents.paper(id_) for id_ in lives]
        await approve(before, papers[3].approval_id)
        await decline(before, papers[4].approval_id)
        await withdraw(before, lives[6])
        kept = await before.file.rows("SELECT * FROM paper ORDER BY position")
        assert len(kept) == len(lives)
        assert len({row[5] for row in kept}) > 1
        await before.file.run(
            [Statement(f"DELETE FROM {name}", [()]) for name in ("paper", "made")]
        )
    async with stores.opened(f"sqlite:{path}", "test") as stored:
        assert await stored.database.rows("SELECT * FROM paper ORDER BY position") == kept


async def test_the_api_tells_all_that_a_document_says_and_became(mall: World) -> None:
    await publish(mall, **NOBODY_ALONE)
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    api = DocumentApi(desk)
    alice = Call("web", "u-alice", "10.0.0.7", 9.0)
    said = vending_pb2.PublishPolicyRequest(
        name="policies/P1",
        currency="CNY",
        alarm_1_minor=2_000,
        alarm_2_minor=500,
        restore_minor=1,
        rules='{"grace_minutes":240}',
        legal_entity="legalEntities/LE1",
        effective_at_ms=T0_MS + DAY_MS,
    )
    asked = pb.CreateDocumentRequest(
        request_id=str(UUID(int=77)), document=pb.Document(policy=said)
    )
    drafted = await api.CreateDocument(asked, alice)
    assert (drafted.state, drafted.policy, drafted.base_version) == ("draft", said, 1)
    assert await api.CreateDocument(asked, alice) == drafted
    submit_it = pb.SubmitDocumentRequest(request_id=str(UUID(int=78)), name=drafted.name)
    submitted = await api.SubmitDocument(submit_it, alice)
    assert (submitted.state, submitted.submitted_by) == ("submitted", "web u-alice")
    page = pb.ListDocumentsRequest(filter="state = submitted AND policy = policies/P1")
    assert list((await api.ListDocuments(page, alice)).documents) == [submitted]
    other = pb.ListDocumentsRequest(filter="kind = tariff OR state = draft")
    assert list((await api.ListDocuments(other, alice)).documents) == []
    await approve(mall, submitted.approval.removeprefix("approvals/"))
    found = await api.GetDocument(pb.GetDocumentRequest(name=drafted.name), alice)
    assert (found.state, found.published_version) == ("scheduled", 2)
    assert (found.begins_at_ms, found.decided_by) == (T0_MS + DAY_MS, "web u-bob")
    first = pb.ListVersionsRequest(parent="policies/P1", page_size=1)
    one = await api.ListVersions(first, alice)
    first.page_token = one.next_page_token
    two = await api.ListVersions(first, alice)
    states = [(each.number, each.state) for each in (*one.versions, *two.versions)]
    assert (states, two.next_page_token) == ([(1, "in-force"), (2, "scheduled")], "")
    (scheduled_version,) = two.versions
    said.lease_ms, said.max_evidence_age_ms = 300_000, 900_000  # what 0 stood for
    said.rounding = "down"
    assert (scheduled_version.policy, scheduled_version.document) == (said, drafted.name)
    tariffs = await api.ListVersions(pb.ListVersionsRequest(parent="tariffs/T1"), alice)
    assert [each.tariff.price_micro for each in tariffs.versions] == [800_000]
    assert (
        await refused(
            api.CreateDocument(pb.CreateDocumentRequest(request_id=str(UUID(int=79))), alice)
        )
        is Reason.INVALID_ARGUMENT
    )
    nowhere = pb.ListVersionsRequest(parent="sites/S1")
    assert await refused(api.ListVersions(nowhere, alice)) is Reason.INVALID_ARGUMENT


async def test_the_api_takes_back_a_version_that_has_not_begun(mall: World) -> None:
    api = DocumentApi(Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0))
    alice = Call("web", "u-alice", "10.0.0.7", 9.0)
    document_id = await draft(mall, tariff(by_alice(mall, "1"), effective_at_ms=T0_MS + DAY_MS))
    await submit(mall, document_id)
    asked = pb.WithdrawDocumentRequest(
        request_id=str(UUID(int=80)), name=f"documents/{document_id}", reason="typed wrong"
    )
    told = await api.WithdrawDocument(asked, alice)
    assert (told.state, told.decided_by, told.reason) == (
        "withdrawn",
        "web u-alice",
        "typed wrong",
    )
    assert told.published_version == 2
    assert await api.WithdrawDocument(asked, alice) == told
    listed = pb.ListDocumentsRequest(filter="state = withdrawn")
    assert list((await api.ListDocuments(listed, alice)).documents) == [told]
    versions = await api.ListVersions(pb.ListVersionsRequest(parent="tariffs/T1"), alice)
    assert [each.state for each in versions.versions] == ["in-force", "superseded", "scheduled"]


# --- whatever dies in between --------------------------------------------------------------------


async def test_a_document_that_dies_at_any_step_is_published_once(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await world.site()
        await world.tariff()
        await publish(world, **NOBODY_ALONE)

    async def story(world: World) -> None:
        said = tariff(same(world, 1, "first"))
        first = await draft(world, said)
        again = await draft(world, tariff(same(world, 2, "again"), price_micro=850_000), first)
        approval_id = (await submit(world, again)).approval_id
        await approve(world, approval_id, 3)

    async def judge(world: World) -> None:
        (version,) = (await of_type(world, "tariff-published"))[1:]
        assert (version.record()["price_micro"], version.record()["version"]) == (850_000, 2)
        documents = await world.office.documents.page(filters.All(()), 0, 9)
        assert [paper.life.state for paper in documents[0]] == [State.WITHDRAWN, State.SCHEDULED]

    assert await at_every_step(tmp_path, setting, story, judge) == 16


async def test_a_version_that_is_taken_back_dies_anywhere_and_is_so_once(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await world.site()
        await world.tariff()
        later = {"effective_at_ms": T0_MS + DAY_MS}
        await submit(world, await draft(world, tariff(same(world, 1, "later"), **later)))

    async def story(world: World) -> None:
        (document,) = (await world.office.documents.page(filters.All(()), 0, 9))[0]
        command = Withdraw(same(world, 2, "back"), document.document.document_id, "typed wrong")
        await world.office.documents.withdraw(command)

    async def judge(world: World) -> None:
        (document,) = (await world.office.documents.page(filters.All(()), 0, 9))[0]
        assert document.life.state is State.WITHDRAWN
        prices = [e.record()["price_micro"] for e in await of_type(world, "tariff-published")]
        assert prices == [800_000, PRICE_MICRO, 800_000]

    assert await at_every_step(tmp_path, setting, story, judge) == 4


async def test_a_policy_that_is_due_is_brought_into_force_once_whatever_dies(
    tmp_path: Path,
) -> None:
    async def setting(world: World) -> None:
        await world.policy(request=same(world, 1, "P1"))
        content = {"effective_at_ms": T0_MS + DAY_MS}
        document_id = await draft(world, policy(same(world, 2, "later"), **content))
        await submit(world, document_id)

    async def story(world: World) -> None:
        world.clock.at_ms = T0_MS + DAY_MS
        await world.office.complete()

    async def judge(world: World) -> None:
        assert [e.record()["version"] for e in await of_type(world, "policy-published")] == [1, 2]
        (document,) = (await world.office.documents.page(filters.All(()), 0, 9))[0]
        assert document.life.state is State.IN_FORCE

    assert await at_every_step(tmp_path, setting, story, judge) == 2


async def test_a_restart_knows_the_documents(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await world.mall()
        document_id = await draft(world)
        before = await world.book.state_of(Document, document_id)
    async with vending_world.world(tmp_path / "events.sqlite") as again:
        assert await again.book.state_of(Document, document_id) == before
        assert (await again.office.documents.page(filters.All(()), 0, 9))[0]
