"""Goal: credit is paid out once, by two, and never more than metering's echo shows to be left.

Method: the office on a real SQLite file; the test echoes holds as metering would, and in one test
metering's own code does. The story of a refund dies at each of its appends.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.vending.adapters.bus import usage_told
from services.vending.application.book import Outcome
from services.vending.application.relay import Relay
from services.vending.domain.account import Account
from services.vending.domain.approval import approval_id_of
from services.vending.domain.closings import CloseAccount
from services.vending.domain.corrections import RefundCredit
from services.vending.domain.decisions import Request
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.facts import fact_of
from services.vending.domain.origin import Origin
from services.vending.domain.policy import EVIDENCE_AGE_MS_DEFAULT
from services.vending.domain.postings import Usage
from services.vending.domain.settling import SettleClosing
from services.vending.domain.usage import PostUsage
from tests.unit import vending_world
from tests.unit.metering_log import kinds, of
from tests.unit.test_orders_reach_metering import Platform, Shards
from tests.unit.test_vending_approvals import approve, ids, of_type, publish
from tests.unit.test_vending_corrections import adjust
from tests.unit.test_vending_office import refused
from tests.unit.test_vending_orders import Desk
from tests.unit.test_vending_relay import relaying
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import T0_MS, World

NANO = 10**7
ALICE = Origin("web", "u-alice")
ALONE = dict.fromkeys(("refund", "adjustment", "debt", "authority", "move"))


async def refund(
    world: World, amount_minor: int = 0, request: Request | None = None, wait_s: float = 0.0
) -> Outcome[Account]:
    asked = request or world.ask(amount_minor)
    command = RefundCredit(asked, "A1", amount_minor, "cash", "moves out")
    return await world.office.refund(command, wait_s)


async def echo(
    world: World,
    charged_nano: int,
    *,
    open_meters: int = 0,
    read_at_ms: int | None = None,
    sequence: int = 7,
    account_id: str = "A1",
    frozen: bool = False,
    waiting: tuple[tuple[str, str], ...] = (),
) -> None:
    """Answer the hold of an account, if there is one, as metering would."""
    state = await world.office.account(account_id)
    hold_id = fact_of(state, book_epoch=1, shards=8).record["hold_id"]
    if hold_id:
        settle = SettleClosing(
            account_id, hold_id, charged_nano, sequence, open_meters, T0_MS + 5, None, read_at_ms,
            T0_MS, frozen, waiting,
        )  # fmt: skip
        await world.office.settle(settle)


async def answered(desk: Desk, shards: Shards) -> dict[str, Any]:
    """Let metering's own echo settle the hold of A1; return it."""
    (told,) = [echo for done in shards.absorbed for echo in of(done, "echo")]
    at_ms = desk.clock.at_ms
    await desk.office.settle(
        SettleClosing(
            "A1", told["hold_id"], told["charged_nano"], told["account_sequence"],
            told["open_meters"], at_ms, usage_told(told, at_ms),
            told["last_reading_received_at_ms"], told["decided_at_ms"],
        )
    )  # fmt: skip
    return told


async def paid(world: World, charged_nano: int, amount_minor: int = 0, **more: Any) -> int:
    """Ask for a refund, echo, and ask again; return what was paid out."""
    request = world.ask(amount_minor, charged_nano)
    with pytest.raises(Retriable, match="same request_id"):
        await refund(world, amount_minor, request)
    await echo(world, charged_nano, **more)
    event = (await refund(world, amount_minor, request)).event
    assert isinstance(event, CreditRefunded)
    assert event.postings is not None
    posted = {posting.account: posting.amount_nano for posting in event.postings}
    nano = event.amount_minor * NANO
    assert posted == {"liabilities:prepayment": nano, "assets:cash": -nano}
    return event.amount_minor


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    """Return a mall of one person whose account was sold 10.00."""
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        await publish(opened, **ALONE)
        await opened.sell(1_000)
        yield opened


async def test_all_that_is_left_is_paid_out_to_the_minor_unit_and_the_rest_stays(
    mall: World,
) -> None:
    assert await paid(mall, 300 * NANO + 1) == 699
    state = await mall.office.account("A1")
    assert (state.credited_nano, state.held_nano) == ((1_000 - 699) * NANO, 0)
    request = mall.ask("again")
    with pytest.raises(Retriable):
        await refund(mall, 0, request)
    await echo(mall, 300 * NANO + 1)
    assert await refused(refund(mall, 0, request)) is Reason.BALANCE_TOO_LOW


async def test_a_part_is_held_until_the_echo_and_paid_out_once(mall: World) -> None:
    request = mall.ask("part")
    with pytest.raises(Retriable):
        await refund(mall, 400, request)
    held = await mall.office.account("A1")
    assert held.held_nano == 400 * NANO
    assert await refused(refund(mall, 1)) is Reason.REFUND_UNDER_WAY
    assert await refused(mall.close()) is Reason.REFUND_UNDER_WAY
    waiting = asyncio.create_task(refund(mall, 400, request, wait_s=30.0))
    await asyncio.sleep(0)
    for _ in range(2):
        await echo(mall, 500 * NANO)
    answer = await waiting
    assert isinstance(answer.event, CreditRefunded)
    assert (answer.state.credited_nano, answer.state.held_nano) == (600 * NANO, 0)
    assert await refund(mall, 400, request) == answer
    assert len(await of_type(mall, "credit-refunded")) == 1


async def test_no_more_is_paid_out_than_the_echo_shows(mall: World) -> None:
    request = mall.ask("much")
    with pytest.raises(Retriable):
        await refund(mall, 700, request)
    await echo(mall, 301 * NANO)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"6\.99 CNY is left") as caught:
            await refund(mall, 700, request)
        assert caught.value.reason is Reason.BALANCE_TOO_LOW
    state = await mall.office.account("A1")
    assert (state.credited_nano, state.held_nano) == (1_000 * NANO, 0)
    assert await refused(refund(mall, 1_001)) is Reason.BALANCE_TOO_LOW, "nothing is held for it"


async def test_what_a_silent_meter_used_is_not_known_so_nothing_is_paid_out(mall: World) -> None:
    for read_at_ms in (None, T0_MS - EVIDENCE_AGE_MS_DEFAULT - 1):
        request = mall.ask("silent", read_at_ms)
        with pytest.raises(Retriable):
            await refund(mall, 0, request)
        await echo(mall, 0, open_meters=1, read_at_ms=read_at_ms)
        assert await refused(refund(mall, 0, request)) is Reason.EVIDENCE_TOO_OLD
    request = mall.ask("an earlier metering tells one reading of two meters")
    with pytest.raises(Retriable):
        await refund(mall, 0, request)
    await echo(mall, 0, open_meters=2, read_at_ms=T0_MS)
    assert await refused(refund(mall, 0, request)) is Reason.EVIDENCE_TOO_OLD
    read_at_ms = T0_MS - EVIDENCE_AGE_MS_DEFAULT
    assert await paid(mall, 0, open_meters=1, read_at_ms=read_at_ms) == 1_000


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (Reason.ACCOUNT_FROZEN, {"frozen": True}),
        (Reason.EVIDENCE_TOO_OLD, {"waiting": (("M1", str(ids(8))),)}),
    ],
)
async def test_nothing_is_paid_out_while_metering_has_read_what_it_has_not_charged(
    mall: World, reason: Reason, says: dict[str, Any]
) -> None:
    request = mall.ask("not charged")
    with pytest.raises(Retriable):
        await refund(mall, 0, request)
    await echo(mall, 0, **says)
    assert await refused(refund(mall, 0, request)) is reason
    assert (await mall.office.account("A1")).held_nano == 0


async def test_an_echo_that_knows_less_than_the_book_settles_nothing(mall: World) -> None:
    seed: tuple[Any, ...] = (0, 0, 1, [], b"", 0, T0_MS)
    usage = Usage(energy_nano=700 * NANO)
    await mall.office.post_usage(PostUsage(mall.ask("used"), "A1", 10, usage, *seed))
    request = mall.ask("all")
    with pytest.raises(Retriable):
        await refund(mall, 0, request)
    await echo(mall, 0, sequence=9)  # metering's row was lost
    for _ in range(2):
        with pytest.raises(InvalidInput, match="less than the book has posted") as caught:
            await refund(mall, 0, request)
        assert caught.value.reason is Reason.EVIDENCE_TOO_OLD
    await adjust(mall, -1_000)
    asked = asyncio.create_task(mall.close(wait_s=10.0))
    while (await mall.office.account("A1")).closing is None:
        await asyncio.sleep(0)
    await echo(mall, 0, sequence=9)  # it would close with a balance of 0, and 7.00 are owed
    with pytest.raises(InvalidInput, match="less than the book has posted") as caught:
        await asked
    assert caught.value.reason is Reason.EVIDENCE_TOO_OLD
    await adjust(mall, 1_000)
    assert await paid(mall, 700 * NANO, sequence=10) == 300


async def test_who_owes_is_not_paid_out(mall: World) -> None:
    await mall.owe(10, 1_000)
    assert await refused(refund(mall)) is Reason.ACCOUNT_HAS_DEBT
    await mall.owe(0, 0)
    request = mall.ask("then a debt")
    with pytest.raises(Retriable):
        await refund(mall, 0, request)
    await mall.owe(10, 1_000)
    await echo(mall, 0)
    assert await refused(refund(mall, 0, request)) is Reason.ACCOUNT_HAS_DEBT


async def test_what_is_sold_while_a_refund_waits_stays_in_the_account(mall: World) -> None:
    await publish(mall, refund=5_000)
    request = mall.ask("all")
    with pytest.raises(Retriable):
        await refund(mall, 0, request)  # of 10.00: so much one person may pay out alone
    await mall.sell(10_000)
    await echo(mall, 30 * NANO)
    event = (await refund(mall, 0, request)).event
    assert isinstance(event, CreditRefunded)
    assert event.amount_minor == 1_000


async def test_of_all_no_more_is_paid_out_than_two_persons_saw(mall: World) -> None:
    await publish(mall)
    request = mall.ask("all", caller="web", origin=ALICE)
    assert await refused(refund(mall, 0, request)) is Reason.APPROVAL_REQUIRED
    approval_id = approval_id_of(request)
    proposal = await mall.office.approvals.proposal(approval_id)
    assert json.loads(proposal.content)["at_most_minor"] == 1_000
    await mall.sell(10_000)
    await approve(mall, approval_id)
    await echo(mall, 0)
    event = (await refund(mall, 0, request)).event
    assert isinstance(event, CreditRefunded)
    assert event.amount_minor == 1_000


async def test_an_account_that_was_refunded_in_full_is_closed(mall: World) -> None:
    assert await paid(mall, 250 * NANO) == 750
    with pytest.raises(Retriable):
        await mall.close()
    await echo(mall, 250 * NANO)
    assert (await mall.office.account("A1")).status == "closed"
    assert await refused(refund(mall)) is Reason.ACCOUNT_NOT_OPEN


# --- two persons, crashes, the meter -------------------------------------------------------------


async def test_a_process_that_dies_anywhere_pays_out_once_what_two_approved(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await world.mall()
        await world.sell(1_000)

    async def story(world: World) -> None:
        request = world.ask("refund", request_id=ids(1), caller="web", origin=ALICE)
        try:
            await refund(world, 300, request)
        except InvalidInput as waits:
            if waits.reason is not Reason.APPROVAL_REQUIRED:
                raise
            await approve(world, approval_id_of(request), number=8)
        except Retriable:
            pass
        await echo(world, 100 * NANO)
        outcome = await refund(world, 300, request)
        assert isinstance(outcome.event, CreditRefunded)

    async def judge(world: World) -> None:
        state = await world.office.account("A1")
        assert (state.credited_nano, state.held_nano) == (700 * NANO, 0)
        (event,) = await of_type(world, "credit-refunded")
        assert event.origin == Origin("web", "u-alice", "", "web u-bob")

    # command-proposed, proposal-approved, refund-held, proposal-executed, credit-refunded
    assert await at_every_step(tmp_path, setting, story, judge) == 10


async def test_a_process_that_dies_anywhere_refuses_a_refund_once(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await world.mall()
        await publish(world, **ALONE)
        await world.sell(1_000)

    async def story(world: World) -> None:
        request = world.ask("refund", request_id=ids(1))
        with suppress(Retriable, InvalidInput):
            await refund(world, 300, request)
        await echo(world, 701 * NANO)
        assert await refused(refund(world, 300, request)) is Reason.BALANCE_TOO_LOW

    async def judge(world: World) -> None:
        state = await world.office.account("A1")
        assert (state.credited_nano, state.held_nano) == (1_000 * NANO, 0)

    # refund-held, refund-refused
    assert await at_every_step(tmp_path, setting, story, judge) == 4


async def test_metering_answers_the_hold_and_the_next_reading_judges_what_is_left(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await publish(desk, **ALONE)
            await desk.sell(1_000)
            await desk.assign(register_milli=0)
            log = shards.logs[(await desk.office.account("A1")).shard]
            log.now_ms = desk.clock.at_ms
            platform = Platform(desk, shards, relay, log, [])
            await platform.told()
            await platform.read(2_000)
            request = desk.ask("all")
            with pytest.raises(Retriable):
                await refund(desk, 0, request)
            await relay.caught_up()
            told = await answered(desk, shards)
            assert told["charged_nano"] == 2_000 * 800_000
            event = (await refund(desk, 0, request)).event
            assert isinstance(event, CreditRefunded)
            assert event.amount_minor == 840
            await platform.told()
            assert kinds(await platform.read(2_001)) == ["cut", "open"]


async def test_one_silent_meter_among_several_keeps_the_money_back(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await publish(desk, **ALONE)
            await desk.sell(1_000)
            await desk.meter("M2", unit=2)
            for meter_id in ("M1", "M2"):
                await desk.assign(meter_id, register_milli=0)
            log = shards.logs[(await desk.office.account("A1")).shard]
            log.now_ms = desk.clock.at_ms
            platform = Platform(desk, shards, relay, log, [])
            await platform.told()
            await platform.read(1)  # M1: M2 never said anything
            request = desk.ask("never read")
            with pytest.raises(Retriable):
                await refund(desk, 0, request)
            await relay.caught_up()
            await answered(desk, shards)
            with pytest.raises(InvalidInput, match=r"last reading of M2 is older than 15 min"):
                await refund(desk, 0, request)
            await desk.office.release_meter(desk.ask("release"), "M2", 0)
            await platform.told()
            request = desk.ask("released")
            with pytest.raises(Retriable):
                await refund(desk, 0, request)
            await relay.caught_up()
            await answered(desk, shards)
            assert isinstance((await refund(desk, 0, request)).event, CreditRefunded)


async def test_what_a_held_meter_used_is_not_known_when_its_last_charge_is_old(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await publish(desk, **ALONE)
            await desk.sell(1_000)
            await desk.assign(register_milli=0)
            log = shards.logs[(await desk.office.account("A1")).shard]
            log.now_ms = desk.clock.at_ms
            platform = Platform(desk, shards, relay, log, [])
            await platform.told()
            await platform.read(1)
            for minutes in range(16):  # each is held, or waits behind the one that is
                await platform.read(900_000_000 + minutes)
            request = desk.ask("all")
            with pytest.raises(Retriable):
                await refund(desk, 0, request)
            await relay.caught_up()
            await answered(desk, shards)
            assert await refused(refund(desk, 0, request)) is Reason.EVIDENCE_TOO_OLD


async def test_metering_answers_anew_what_is_asked_again_after_a_raise(tmp_path: Path) -> None:
    path, copy, shards = tmp_path / "events.sqlite", tmp_path / "copy.sqlite", Shards()

    async def asked_both(desk: Desk, relay: Relay) -> list[str]:
        """Refund, then close, by the same requests each time; return the holds' ids."""
        for log in shards.logs:
            log.now_ms = desk.clock.at_ms
        shards.absorbed.clear()
        request = desk.ask("all", request_id=ids(1))
        for _ in range(2):  # a retry is the same hold
            with pytest.raises(Retriable):
                await refund(desk, 0, request)
        await relay.caught_up()
        first = await answered(desk, shards)
        assert isinstance((await refund(desk, 0, request)).event, CreditRefunded)
        await relay.caught_up()
        shards.absorbed.clear()
        end = CloseAccount(desk.ask("end", request_id=ids(2)), "A1")
        with pytest.raises(Retriable):
            await desk.office.close_account(end, 0.0)
        await relay.caught_up()
        second = await answered(desk, shards)
        assert (await desk.office.account("A1")).status == "closed"
        return [first["hold_id"], second["hold_id"]]

    async with vending_world.world(path) as world:
        desk = Desk(**vars(world))
        async with relaying(world, shards) as relay:
            await desk.mall()
            await publish(desk, **ALONE)
            await desk.sell(1_000)
            await relay.caught_up()
            for end in ("", "-wal"):
                shutil.copy(f"{path}{end}", f"{copy}{end}")
            before = await asked_both(desk, relay)
            await relay.caught_up()
    async with vending_world.world(copy) as world:
        await world.tables.raise_book_epoch(2, await world.store.head())
        async with relaying(world, shards, book_epoch=2) as relay:
            await relay.caught_up()
            after = await asked_both(Desk(**vars(world)), relay)
    assert len({*before, *after}) == 4
