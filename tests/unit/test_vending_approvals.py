"""Goal: what needs a second person is done when another approves, once, whatever dies in between.

Method: the office on a real SQLite file; the story of a proposal dies at each of its appends and is
told again after a restart.
"""

import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters.api import VendingApi
from services.vending.adapters.api.desk import Desk
from services.vending.application.book import Outcome
from services.vending.application.stored import event_of
from services.vending.domain import policy
from services.vending.domain.approval import Approve, Decline, Proposal, Status, approval_id_of
from services.vending.domain.authority import (
    Action,
    Authority,
    PublishAuthority,
    are_two,
    rules_text,
)
from services.vending.domain.decisions import Accepted, Rejection, Request
from services.vending.domain.events.event import Event
from services.vending.domain.events.prices import PolicyPublished
from services.vending.domain.meter import Meter
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.orders import DAY_MS, KeepPower, PromisePayment
from services.vending.domain.origin import NOBODY, Origin
from services.vending.domain.policy import PublishPolicy
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_office import refused
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import LEAD_MS, T0_MS, World
from wattvend.vending.v1 import vending_pb2 as pb

ALICE, BOB = Origin("web", "u-alice"), Origin("web", "u-bob")


def ids(number: int) -> UUID:
    return UUID(int=number + 1)


async def publish(world: World, request: Request | None = None, **rules: int | None) -> Authority:
    said = rules_text({name.replace("_", "-"): above for name, above in rules.items()})
    return (await world.may_alone(said, request)).state


async def force(world: World, request: Request, position: str = "off") -> Outcome[Meter]:
    return await world.office.order(ForceRelay(request, "M1", position, "works"))


async def keep(world: World, days: int, request: Request | None = None) -> Outcome[Any]:
    asked = request or world.ask(days)
    order = KeepPower(asked, "A1", world.clock.now_ms() + days * DAY_MS, "a lift")
    return await world.office.order_for(order)


async def approve(
    world: World, approval_id: str, number: int | None = None, origin: Origin | None = None
) -> Proposal:
    request_id = uuid4() if number is None else ids(number)
    if origin is None:
        named = (await world.office.approvals.proposal(approval_id)).proposer.actor
        origin = BOB if named else Origin("web")  # else it is not certain that they are two
    request = world.ask(approval_id, request_id=request_id, caller="web", origin=origin)
    return await world.office.approvals.approve(Approve(request, approval_id, "seen"))


async def decline(world: World, approval_id: str, origin: Origin = BOB) -> Proposal:
    request = world.ask(approval_id, caller="web", origin=origin)
    return await world.office.approvals.decline(Decline(request, approval_id, "not today"))


def asked_by_alice(world: World, *content: object) -> Request:
    return world.ask(*content, request_id=ids(7), caller="web", origin=ALICE)


async def stored(world: World) -> list[Event]:
    return [event_of(each) for each in await world.store.read_all(0, 10_000)]


async def of_type(world: World, subject: str) -> list[Event]:
    return [event for event in await stored(world) if subject == event.SUBJECT]


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        yield opened


async def message_of(asked: Awaitable[Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        await asked
    return caught.value.message


# --- who may do what alone -----------------------------------------------------------------------


async def test_a_proposal_that_nobody_made_is_neither_found_nor_decided(mall: World) -> None:
    nobodys, before = str(uuid4()), await stored(mall)
    for asked in (
        mall.office.approvals.proposal(nobodys),
        approve(mall, nobodys, origin=BOB),
        decline(mall, nobodys),
    ):
        with pytest.raises(InvalidInput) as refused:
            await asked
        assert refused.value.reason is Reason.APPROVAL_NOT_FOUND
    assert await stored(mall) == before


async def test_without_a_document_one_person_does_what_releases_until_now_let_one_do(
    mall: World,
) -> None:
    await force(mall, mall.ask("off"))
    await keep(mall, 400)
    await mall.tariff(price_micro=900_000)
    assert await of_type(mall, "command-proposed") == []


async def test_a_document_that_names_nothing_asks_a_second_person_for_everything(
    mall: World,
) -> None:
    await publish(mall)
    for asked in (
        force(mall, mall.ask("off")),
        force(mall, mall.ask("on"), "on"),
        keep(mall, 1),
        mall.tariff(price_micro=900_000),
        publish(mall, force_off=None),
    ):
        assert await refused(asked) is Reason.APPROVAL_REQUIRED
    assert len(await of_type(mall, "command-proposed")) == 5
    await mall.tariff("T2")  # no price is changed where none was


async def test_an_operator_of_one_person_says_so_and_works_alone(mall: World) -> None:
    await publish(mall, price_change=None, force_off=None, keep_power=None, authority=None)
    await force(mall, mall.ask("off"))
    await keep(mall, 400)
    await mall.tariff(price_micro=900_000)
    assert (await publish(mall, authority=None)).version == 2


async def test_a_limit_is_what_one_person_may_still_do(mall: World) -> None:
    await publish(mall, keep_power=7)
    await keep(mall, 7)
    said = await message_of(keep(mall, 8))
    assert "keep-power of 8 days needs a second person, above 7 days" in said


async def test_a_relay_forced_on_keeps_power_without_an_end_and_falls_under_keep_power(
    mall: World,
) -> None:
    await publish(mall, keep_power=400, authority=None)
    request = asked_by_alice(mall, "on")
    said = await message_of(force(mall, request, "on"))
    assert "keep-power without end needs a second person, above 400 days" in said
    assert (await approve(mall, approval_id_of(request))).action == Action.KEEP_POWER
    assert (await mall.office.meter("M1")).forced == "on"
    await force(mall, mall.ask("prepaid"), "prepaid")  # its end needs nobody
    await publish(mall, keep_power=None)
    await force(mall, mall.ask("alone"), "on")


async def test_a_promise_keeps_power_on_and_its_days_count_alike(mall: World) -> None:
    async def promise(days: int, request: Request) -> Outcome[Any]:
        until_ms = mall.clock.now_ms() + days * DAY_MS
        return await mall.office.order_for(PromisePayment(request, "A1", until_ms, "on Friday"))

    await promise(31, mall.ask("without a document"))
    await publish(mall, keep_power=7)
    await promise(7, mall.ask("week"))
    request = asked_by_alice(mall, "longer")
    assert await refused(promise(8, request)) is Reason.APPROVAL_REQUIRED
    proposal = await approve(mall, approval_id_of(request))
    assert (proposal.status, proposal.command) == (Status.EXECUTED, "promise-payment")
    orders = (await mall.office.account("A1")).orders
    assert orders.promise_until_ms == T0_MS + 8 * DAY_MS


async def test_a_debt_that_nothing_would_recover_any_more_is_changed_as_a_whole(
    mall: World,
) -> None:
    await mall.owe(1_000, 500_000)
    await publish(mall, debt=999)
    assert await refused(mall.owe(1_000, 1)) is Reason.APPROVAL_REQUIRED
    await mall.owe(100, 500_000)
    await mall.owe(100, 1)


async def test_emergency_credit_above_the_limit_waits_and_is_what_two_persons_saw(
    mall: World,
) -> None:
    await mall.policy(emergency_minor=2_000)
    await publish(mall, emergency=2_000, policy_change=None)
    await mall.account("A2")
    assert (await mall.grant("A2")).state.owed.emergency_minor == 2_000
    await mall.policy(emergency_minor=5_000)
    request = asked_by_alice(mall, "A1")
    said = await message_of(mall.grant(request=request))
    assert "emergency of 50.00 CNY needs a second person, above 20.00 CNY" in said
    await mall.policy(emergency_minor=9_000)
    proposal = await approve(mall, approval_id_of(request))
    assert (proposal.status, proposal.command) == (Status.EXECUTED, "grant-emergency")
    granted = await mall.grant(request=request)
    assert granted.state.owed.emergency_minor == 5_000, "not what the policy grants since"


async def test_a_policy_is_changed_as_its_legal_entity_lets_one_person(mall: World) -> None:
    await publish(mall)
    await mall.policy("P2", legal_entity="LE1")  # nothing is changed where nothing was
    request = asked_by_alice(mall, "P2")
    changed = {"legal_entity": "LE1", "alarm_1_minor": 2_000, "fee_ppm": 10_000}
    assert await refused(mall.policy("P2", request=request, **changed)) is (
        Reason.APPROVAL_REQUIRED
    )
    proposal = await approve(mall, approval_id_of(request))
    assert (proposal.status, proposal.legal_entity) == (Status.EXECUTED, "LE1")
    policy = (await mall.policy("P2", request=request, **changed)).state
    assert (policy.version, policy.fee_ppm, policy.alarm_1_nano) == (2, 10_000, 20_000_000_000)


async def test_a_policy_belongs_to_a_legal_entity_from_its_first_version_on(mall: World) -> None:
    assert await refused(mall.policy("P9", legal_entity="")) is Reason.INVALID_ARGUMENT
    assert await refused(mall.policy(legal_entity="LE2")) is Reason.LEGAL_ENTITY_MISMATCH
    await mall.policy("P2", legal_entity="LE2")
    assert await refused(mall.account("A2", policy_id="P2")) is Reason.LEGAL_ENTITY_MISMATCH


async def test_a_policy_of_an_earlier_release_gets_its_legal_entity_by_two(mall: World) -> None:
    (first,) = await of_type(mall, "policy-published")
    assert isinstance(first, PolicyPublished)
    of_nobody = policy.evolve(None, replace(first, legal_entity=None))
    request = mall.ask("whose")
    command = PublishPolicy(
        request, "P1", "CNY", 1_000, 500, 0, 1, 0, 0, 0, None, 0, 0, 0, "LE-NOBODY", ""
    )
    alone = policy.decide(of_nobody, command)
    assert isinstance(alone, Rejection)
    assert alone.reason is Reason.APPROVAL_REQUIRED
    approved = replace(request, origin=replace(ALICE, approved_by="web u-bob"))
    assert isinstance(policy.decide(of_nobody, replace(command, request=approved)), Accepted)


@pytest.mark.parametrize(
    "rules",
    ['{"sell":0}', '{"keep-power":-1}', '{"force-off":3}', "[]", "", '{"keep-power":1.5}', "{"],
)
async def test_a_document_that_makes_no_sense_is_refused(mall: World, rules: str) -> None:
    with pytest.raises(InvalidInput):
        PublishAuthority(mall.ask(), "LE1", "CNY", rules, 0)


def test_two_persons_are_two_only_where_that_is_certain() -> None:
    till, other = Origin("till-1"), Origin("till-2")
    assert are_two(till, other)
    assert are_two(ALICE, BOB)
    assert are_two(ALICE, Origin("cli", "u-bob"))
    for one, same in (
        (till, till),
        (ALICE, Origin("cli", "u-alice")),  # one person at two desks
        (ALICE, Origin("cli", "U-Alice")),
        (ALICE, Origin("web")),  # the desk does not say who: it may be she
        (ALICE, Origin("cli")),  # nor does this one
        (Origin("u-alice"), ALICE),
        (Origin("till-1", "", "10.0.0.1"), Origin("till-1", "", "10.0.0.2")),
    ):
        assert not are_two(one, same)
        assert not are_two(same, one)


# --- what becomes of a proposal ------------------------------------------------------------------


async def test_what_was_approved_is_done_and_the_same_request_gets_its_answer(
    mall: World,
) -> None:
    await publish(mall)
    request = asked_by_alice(mall, "off")
    approval_id = approval_id_of(request)
    assert approval_id in await message_of(force(mall, request))
    assert approval_id in await message_of(force(mall, request)), "it waits still"
    assert (await mall.office.meter("M1")).forced is None
    proposal = await approve(mall, approval_id)
    assert (proposal.status, proposal.target) == (Status.EXECUTED, "meter-M1")
    assert (await mall.office.meter("M1")).forced == "off"
    answer = await force(mall, request)
    assert (answer.state.forced, answer.revision) == ("off", proposal.revision)
    (forced,) = await of_type(mall, "relay-forced")
    assert forced.origin == Origin("web", "u-alice", "", "web u-bob")


async def test_nobody_approves_his_own_proposal_but_may_take_it_back(mall: World) -> None:
    await publish(mall)
    request = asked_by_alice(mall, "off")
    approval_id = approval_id_of(request)
    await refused(force(mall, request))
    assert await refused(approve(mall, approval_id, origin=ALICE)) is Reason.SAME_PERSON
    assert (await decline(mall, approval_id, ALICE)).status is Status.DECLINED
    assert await refused(force(mall, request)) is Reason.APPROVAL_DECLINED
    assert await refused(approve(mall, approval_id)) is Reason.APPROVAL_DECIDED
    assert (await mall.office.meter("M1")).forced is None


async def test_a_proposal_waits_three_days_and_then_no_more(mall: World) -> None:
    await publish(mall)
    request = asked_by_alice(mall, "off")
    approval_id = approval_id_of(request)
    await refused(force(mall, request))
    mall.clock.at_ms = T0_MS + 3 * DAY_MS - 1
    assert await mall.office.complete() == 0
    mall.clock.at_ms += 1
    assert await refused(approve(mall, approval_id)) is Reason.APPROVAL_EXPIRED
    assert await refused(force(mall, request)) is Reason.APPROVAL_EXPIRED
    assert await mall.office.complete() == 1
    assert await mall.office.complete() == 0
    assert (await mall.office.approvals.proposal(approval_id)).status is Status.EXPIRED
    assert await refused(force(mall, request)) is Reason.APPROVAL_EXPIRED


async def test_what_cannot_be_done_any_more_when_it_is_approved_fails_with_the_reason(
    mall: World,
) -> None:
    await publish(mall)
    effective_at_ms = T0_MS + LEAD_MS
    change = mall.ask("price", request_id=ids(3))
    asked: dict[str, Any] = {
        "request": change,
        "price_micro": 900_000,
        "effective_at_ms": effective_at_ms,
    }
    assert await refused(mall.tariff(**asked)) is Reason.APPROVAL_REQUIRED
    mall.clock.at_ms += LEAD_MS
    proposal = await approve(mall, approval_id_of(change))
    assert proposal.status is Status.FAILED
    assert proposal.failure is not None
    assert proposal.failure.reason == Reason.EFFECTIVE_TOO_EARLY
    assert await refused(mall.tariff(**asked)) is Reason.EFFECTIVE_TOO_EARLY
    assert len(await of_type(mall, "tariff-published")) == 1


async def test_the_document_itself_changes_by_two_persons(mall: World) -> None:
    await publish(mall)
    request = mall.ask(rules_text({"force-off": None}), request_id=ids(4))
    assert await refused(publish(mall, request, force_off=None)) is Reason.APPROVAL_REQUIRED
    await approve(mall, approval_id_of(request))
    assert (await publish(mall, request, force_off=None)).version == 2
    await force(mall, mall.ask("off"))


async def test_a_request_id_is_one_request_whether_it_was_proposed_or_done(mall: World) -> None:
    used = mall.ask("on", request_id=ids(1))
    await force(mall, used, "on")
    await publish(mall)
    assert (await force(mall, used, "on")).state.forced == "on", "its first answer"
    assert await refused(keep(mall, 1, used)) is Reason.REQUEST_ID_REUSED
    proposed = mall.ask("off", request_id=ids(2))
    assert await refused(force(mall, proposed)) is Reason.APPROVAL_REQUIRED
    other = mall.ask("another", request_id=ids(2))
    assert await refused(force(mall, other)) is Reason.REQUEST_ID_REUSED
    assert await refused(mall.sell(1, request=proposed)) is Reason.REQUEST_ID_REUSED


async def test_what_waits_is_listed_oldest_first_and_by_pages(mall: World) -> None:
    await publish(mall)
    requests = [mall.ask(days, request_id=ids(days)) for days in (1, 2, 3)]
    for days, request in enumerate(requests, 1):
        await refused(keep(mall, days, request))
    await decline(mall, approval_id_of(requests[1]))
    first, after = await mall.office.approvals.pending("LE1", 0, 1)
    assert after is not None
    second, end = await mall.office.approvals.pending("", after, 1)
    wanted = [approval_id_of(requests[0]), approval_id_of(requests[2])]
    assert [p.approval_id for p in (*first, *second)] == wanted
    assert end is None
    assert await mall.office.approvals.pending("LE2", 0, 9) == ([], None)


async def test_the_api_tells_what_waits_and_who_let_it_happen(mall: World) -> None:
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    api = VendingApi(desk)
    alice, bob = (Call("web", who, "10.0.0.7", 9.0) for who in ("u-alice", "u-bob"))

    async def asked(method: Any, call: Call, request: Any) -> Any:
        return await method(request, call)

    document = pb.PublishAuthorityRequest(
        request_id=str(uuid4()), name="legalEntities/LE1/authority", currency="CNY", rules="{}"
    )
    published = await asked(api.PublishAuthority, alice, document)
    assert json.loads(published.rules) == dict.fromkeys(Action, 0)
    entity = pb.GetAuthorityRequest(name="legalEntities/LE1/authority")
    assert await asked(api.GetAuthority, bob, entity) == published
    order = pb.ForceRelayRequest(
        request_id=str(uuid4()), name="meters/M1", position="off", reason="works"
    )
    assert await refused(asked(api.ForceRelay, alice, order)) is Reason.APPROVAL_REQUIRED
    page = pb.ListApprovalsRequest(filter="legal_entity = legalEntities/LE1", page_size=1)
    (waits,) = (await asked(api.ListApprovals, bob, page)).approvals
    assert (waits.status, waits.proposed_by, waits.target) == (
        "pending",
        "web u-alice",
        "meters/M1",
    )
    assert json.loads(waits.content) == {
        "meter_id": "M1",
        "position": "off",
        "reason": "works",
        "seen": {"account_id": "house:M1", "tenancy": 0, "forced": None},
    }
    yes = pb.ApproveRequest(request_id=str(uuid4()), name=waits.name, reason="seen")
    done = await asked(api.Approve, bob, yes)
    assert (done.status, done.decided_by, done.reason) == ("executed", "web u-bob", "seen")
    assert await asked(api.Approve, bob, yes) == done
    assert (await asked(api.ForceRelay, alice, order)).forced == "off"
    assert (await asked(api.ListApprovals, bob, page)).approvals == []
    known = pb.GetApprovalRequest(name=waits.name)
    assert await asked(api.GetApproval, bob, known) == done
    no = pb.DeclineRequest(request_id=str(uuid4()), name=waits.name, reason="late")
    assert await refused(asked(api.Decline, bob, no)) is Reason.APPROVAL_DECIDED
    nobody = pb.GetAuthorityRequest(name="legalEntities/LE2/authority")
    assert await refused(asked(api.GetAuthority, bob, nobody)) is Reason.AUTHORITY_NOT_FOUND


# --- crashes -------------------------------------------------------------------------------------


async def test_a_process_that_dies_anywhere_carries_out_once_what_was_approved(
    tmp_path: Path,
) -> None:
    approval_id = approval_id_of(Request("web", str(ids(7)), b"", 0))

    async def setting(world: World) -> None:
        await world.mall()
        await publish(world)

    async def story(world: World) -> None:
        try:
            await force(world, asked_by_alice(world, "off"))
        except InvalidInput as waits:
            if waits.reason is not Reason.APPROVAL_REQUIRED:
                raise
            await approve(world, approval_id, number=8)
        assert (await force(world, asked_by_alice(world, "off"))).state.forced == "off"

    async def judge(world: World) -> None:
        (forced,) = await of_type(world, "relay-forced")
        assert forced.origin == Origin("web", "u-alice", "", "web u-bob")
        proposal = await world.office.approvals.proposal(approval_id)
        assert proposal.status is Status.EXECUTED
        assert await world.office.complete() == 0

    # command-proposed, proposal-approved, relay-forced, proposal-executed: before and after each
    assert await at_every_step(tmp_path, setting, story, judge) == 8


async def test_a_process_that_dies_anywhere_says_once_why_what_was_approved_fails(
    tmp_path: Path,
) -> None:
    def asked(world: World, number: int) -> Request:
        return world.ask("off", number, request_id=ids(number), caller="web", origin=ALICE)

    async def setting(world: World) -> None:
        await world.mall()
        await publish(world)

    async def story(world: World) -> None:
        for number in (1, 2):
            with suppress(InvalidInput):
                await force(world, asked(world, number))
        for number in (1, 2):
            await approve(world, approval_id_of(asked(world, number)), number=10 + number)
        assert (await force(world, asked(world, 1))).state.forced == "off"
        assert await refused(force(world, asked(world, 2))) is Reason.NOTHING_CHANGES

    async def judge(world: World) -> None:
        assert len(await of_type(world, "proposal-failed")) == 1
        assert len(await of_type(world, "relay-forced")) == 1

    # both proposed; approved, forced, executed; approved, failed
    assert await at_every_step(tmp_path, setting, story, judge) == 14


async def test_a_process_that_dies_anywhere_lets_a_proposal_expire_or_decline_once(
    tmp_path: Path,
) -> None:
    async def setting(world: World) -> None:
        await world.mall()
        await publish(world)

    async def story(world: World) -> None:
        for days in (1, 2):
            asked = world.ask(days, request_id=ids(days), caller="web", origin=ALICE)
            await refused(keep(world, days, asked))
        declined = approval_id_of(world.ask(request_id=ids(1), caller="web"))
        no = world.ask("no", request_id=ids(9), caller="web", origin=BOB)
        await world.office.approvals.decline(Decline(no, declined, "not today"))
        world.clock.at_ms = T0_MS + 3 * DAY_MS
        await world.office.complete()

    async def judge(world: World) -> None:
        assert len(await of_type(world, "proposal-expired")) == 1
        assert len(await of_type(world, "proposal-declined")) == 1
        assert await world.office.approvals.pending("", 0, 9) == ([], None)

    assert await at_every_step(tmp_path, setting, story, judge) == 8


async def test_approved_and_not_told_is_carried_out_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with vending_world.world(path) as first:
        await first.mall()
        await publish(first)
        request = asked_by_alice(first, "off")
        await refused(force(first, request))
        approval_id = approval_id_of(request)
        by = first.ask(approval_id, caller="web", origin=BOB)
        await first.office.approvals._submit(approval_id, Approve(by, approval_id, "seen"))
        assert (await first.office.meter("M1")).forced is None
    async with vending_world.world(path) as second:
        assert await second.office.complete() == 1
        assert (await second.office.meter("M1")).forced == "off"


async def test_a_caller_that_names_no_actor_is_one_person_whatever_he_sends(mall: World) -> None:
    await publish(mall)
    request = mall.ask("off", request_id=ids(7), origin=NOBODY)
    await refused(force(mall, request))
    same = mall.ask(1)
    approval_id = approval_id_of(request)
    command = Approve(same, approval_id, "me again")
    assert await refused(mall.office.approvals.approve(command)) is Reason.SAME_PERSON


async def test_a_proposal_that_a_release_cannot_read_waits_and_no_other_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.sqlite"
    async with vending_world.world(path) as first:
        await first.mall()
        await publish(first)
        asked = [first.ask(n, request_id=ids(n), caller="web", origin=ALICE) for n in (1, 2)]
        unread, other = (approval_id_of(request) for request in asked)
        await refused(keep(first, 1, asked[0]))
        await refused(force(first, asked[1]))
        for approval_id in (unread, other):
            by = first.ask(approval_id, caller="web", origin=BOB)
            await first.office.approvals._submit(approval_id, Approve(by, approval_id, "seen"))
    async with vending_world.world(path) as second:
        approvals = second.office.approvals
        grown = replace(approvals._commands["keep-power"], made=ForceRelay)  # other fields
        with monkeypatch.context() as broken:
            broken.setitem(approvals._commands, "keep-power", grown)
            assert await second.office.complete() == 1
        assert (await second.office.meter("M1")).forced == "off"
        assert (await approvals.proposal(unread)).status is Status.APPROVED
        assert await second.office.complete() == 1, "a release that can carries it out"
        assert (await approvals.proposal(unread)).status is Status.EXECUTED
