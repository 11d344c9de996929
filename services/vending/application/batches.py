"""Batches: a command for many, in rounds that are written down before they are given.

Three kinds of appends for each round: that it begins, in the batch's stream; each command in its
own stream, by a request that derives from batch and target; what came of each, in the batch's
stream again. What runs, or has an open round, is known from the store: a process that dies in
between gives the open round again, and every command that was done is a repeat.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import structlog

from services.common.kernel.clock import Clock
from services.common.kernel.errors import Bug, InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime import points
from services.vending.application.approvals import Approvals, Prepared, prepared_for
from services.vending.application.book import Book, Outcome, accepted, check_accepted
from services.vending.application.drafting import TARGETS_AT_A_STRETCH, Draft, Drafting
from services.vending.application.exporting import AT_ONCE, Exporting
from services.vending.application.process import each, step
from services.vending.domain import account_commands, batch, batching, checks, pacing, sale
from services.vending.domain.account import Account
from services.vending.domain.batch import Batch, Kind, Result, Status, Target
from services.vending.domain.changes import ChangeTerms
from services.vending.domain.corrections import AdjustCredit
from services.vending.domain.decisions import Accepted, Decision, Rejection, Request, answered
from services.vending.domain.events.batches import BatchRoundEnded
from services.vending.domain.meter import Meter
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.pacing import MINUTE_MS, Asked
from services.vending.domain.policy import Policy
from services.vending.domain.site import Site
from services.vending.domain.tables import BatchRow, Tables

LOOK_AGAIN_S = 0.5
"""How soon a batch begins that was submitted, or goes on that waited."""
DRAFTS_MAX = 100
"""Of a legal entity: each may name ten thousand targets, and is kept whether it is submitted."""
BATCH, EXPORT = "batch", "export"
"""What fails, as it is measured."""
EXPORTS = frozenset((Kind.EXPORT,))
COMMANDS = frozenset(Kind) - EXPORTS
ROWS_AT_ONCE = 1_000
FAR_MS = checks.TIME_MS_MAX
MISTAKES = (
    Bug,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What is raised where a target cannot be decided, by a mistake of ours: however often it is tried.

A store that is away, or dies, raises others: then the round stays open.
"""
APPROVED = "a preview"
"""Who lets a command happen in a preview: what it takes of persons, the batch takes once."""


@value_class
class Pace:
    """What of a site waits: the next at `next_at_ms`, the last not before `last_at_ms`."""

    site_id: str
    waiting: int
    per_minute: int
    next_at_ms: int
    last_at_ms: int


@value_class
class Preview:
    """What a batch would do. `sites`, `states`: how many targets each has.

    `reasons`: reason → how many would be refused or skipped by it; `needs_two`: why a second
    person must approve, "" where nobody. `rows`: how many would be exported.
    """

    sites: Counter[str]
    states: Counter[str]
    outcomes: Counter[batch.Outcome]
    reasons: Counter[str]
    needs_two: str
    rows: int


@value_class
class UnderWay:
    """What goes on: how many batches run and are paused, when the oldest of both was submitted.

    `submitted_at_ms`: 0 where there is none; `paced`: targets of those that run which wait for the
    budget of their site; `moved_at_ms`: when the one that runs, and has stood for longest, last
    began or ended a round.
    """

    running: int
    paused: int
    submitted_at_ms: int
    paced: int
    moved_at_ms: int


class Batches:
    """Batches: drafts, their previews, and the rounds of those that run."""

    def __init__(
        self,
        book: Book,
        tables: Tables,
        clock: Clock,
        approvals: Approvals,
    ) -> None:
        """Use `book`; `tables` know what runs."""
        self._book = book
        self._tables = tables
        self._clock = clock
        self._approvals = approvals
        self.drafting = Drafting(book)
        self.exporting = Exporting(book, clock)
        self._waits_for: dict[str, str] = {}

    # --- what persons do --------------------------------------------------------------------------

    async def create(self, draft: Draft, *, validate_only: bool = False) -> Batch:
        """Draft a batch: choose its targets, and freeze them. `validate_only`: keep nothing."""
        request = draft.request
        batch_id = batching.batch_id_of(request)
        if await self._book.state_of(Batch, batch_id) is not None:
            return (
                await self._book.submit(Batch, batch_id, lambda state: _known(state, request))
            ).state
        self.exporting.check(draft.terms)
        command = await self.drafting.command(draft)
        if await self._tables.batch_drafts(command.legal_entity) >= DRAFTS_MAX:
            raise batching.too_many_drafts(command.legal_entity, DRAFTS_MAX).as_error()
        if validate_only:
            return _folded(batching.decide(None, command))
        return (await self._submit(batch_id, command)).state

    async def submit(self, command: batching.SubmitBatch) -> Batch:
        """Let a batch be carried out, which may need a second person."""
        outcome: Outcome[Batch] = await self._approvals.ask(command)
        return outcome.state

    async def move(
        self, command: batching.PauseBatch | batching.ResumeBatch | batching.CancelBatch
    ) -> Batch:
        """Pause, resume or cancel a batch."""
        return (await self._submit(command.batch_id, command)).state

    async def of(self, batch_id: str) -> Batch:
        """Return a batch. Raises InvalidInput(BATCH_NOT_FOUND)."""
        checks.check_id("name", batch_id)
        found = await self._book.state_of(Batch, batch_id)
        if found is None:
            raise batching.batch_not_found(batch_id).as_error()
        return found

    async def page(
        self, wanted: Callable[[BatchRow], bool], after: int, limit: int
    ) -> list[tuple[int, Batch]]:
        """Return (position, batch) of those wanted above a position, the oldest first."""
        found: list[tuple[int, Batch]] = []
        while rows := await self._tables.batches(after, ROWS_AT_ONCE):
            after = rows[-1].position
            for row in filter(wanted, rows):
                found.append((row.position, await self.of(row.batch_id)))
                if len(found) == limit:
                    return found
        return found

    async def results(self, batch_id: str) -> tuple[Batch, dict[int, Result]]:
        """Return a batch and what came of those of its targets that had their round."""
        state = await self.of(batch_id)
        ended = await self._book.events_of(Batch, batch_id, BatchRoundEnded)
        found = (batch.result_from(said) for event in ended for said in event.results)
        return state, {result.target: result for result in found}

    async def preview(self, batch_id: str) -> Preview:
        """Say what a batch would do, by the rules that decide each command; nothing happens."""
        state = await self.of(batch_id)
        outcomes: Counter[batch.Outcome] = Counter()
        reasons: Counter[str] = Counter()
        states: Counter[str] = Counter()
        rows = 0
        at_once = AT_ONCE if state.terms.kind is Kind.EXPORT else TARGETS_AT_A_STRETCH
        for some in _stretches(range(len(state.targets)), at_once):
            for result, entity in await asyncio.gather(*(self._tried(state, n) for n in some)):
                outcomes[result.outcome] += 1
                states[_state_of(entity)] += 1
                rows += result.export.rows if result.export else 0
                if result.reason:
                    reasons[result.reason] += 1
        ready = await self._approvals.prepared(
            batching.SubmitBatch(self._step(state, "preview"), batch_id)
        )
        refused = ready.decide(state) if state.status is Status.DRAFT else None
        return Preview(
            Counter(target.site_id for target in state.targets),
            states,
            outcomes,
            reasons,
            refused.message if isinstance(refused, Rejection) else "",
            rows,
        )

    async def tried(self, state: Batch, numbers: Iterable[int]) -> list[Result]:
        """Return what would come of targets, one by one; nothing happens."""
        return [(await self._tried(state, number))[0] for number in numbers]

    def waits_for(self, batch_id: str) -> str:
        """Return what keeps the open round of a batch from its end; "" where nothing does."""
        return self._waits_for.get(batch_id, "")

    async def paces(self, state: Batch) -> list[Pace]:
        """Return what waits of each site, and until when; nothing where nothing is paced."""
        if not state.terms.rule.position or state.is_over:
            return []
        now_ms = self._clock.now_ms()
        return await self._paces(state, await self._asked(now_ms), now_ms)

    async def _paces(self, state: Batch, asked: Sequence[Asked], now_ms: int) -> list[Pace]:
        waiting = Counter(target.site_id for _, target in state.waiting())
        budgets = await self._budgets(waiting)
        paces = []
        for site_id, count in sorted(waiting.items()):
            budget = budgets[site_id]
            begin_ms = pacing.next_at_ms(asked, site_id, budget, now_ms)
            last_ms = begin_ms + (count - 1) // budget * MINUTE_MS
            paces.append(Pace(site_id, count, budget, begin_ms, last_ms))
        return paces

    async def under_way(self) -> UnderWay:
        """Return what goes on."""
        now_ms = self._clock.now_ms()
        open_ = [await self.of(batch_id) for batch_id in await self._tables.open_batches(FAR_MS)]
        running = [state for state in open_ if state.status is Status.RUNNING]
        paused = [await self.of(batch_id) for batch_id in await self._tables.paused_batches()]
        paced = [state for state in running if state.terms.rule.position]
        asked = await self._asked(now_ms) if paced else []
        paces = [pace for state in paced for pace in await self._paces(state, asked, now_ms)]
        return UnderWay(
            len(running),
            len(paused),
            min((state.submitted_at_ms or now_ms for state in (*running, *paused)), default=0),
            sum(pace.waiting for pace in paces if pace.next_at_ms > now_ms),
            min((state.changed_at_ms for state in running), default=0),
        )

    # --- rounds -----------------------------------------------------------------------------------

    async def run(self, log: structlog.stdlib.BoundLogger, kinds: frozenset[Kind]) -> None:
        """Give rounds for as long as the service runs, also after a failure of the store.

        Exports are run beside the other kinds: no order to a relay waits for reporting.
        """
        while True:
            moved = False
            try:
                moved = await self.turn(kinds)
            except Retriable as away:
                log.warning("batches stand still", why=str(away))
            if not moved:
                await asyncio.sleep(LOOK_AGAIN_S)

    async def turn(self, kinds: frozenset[Kind] = COMMANDS | EXPORTS) -> bool:
        """Give each batch one round, where it has one that may be given; return whether any did."""
        moved = False

        async def one(batch_id: str) -> None:
            nonlocal moved
            state = await self.of(batch_id)
            if state.terms.kind in kinds:
                moved = await self._round(state) or moved

        ids = await self._tables.open_batches(FAR_MS)
        await each(self._book.failing, EXPORT if kinds == EXPORTS else BATCH, ids, one)
        return moved

    async def _round(self, state: Batch) -> bool:
        """Give the open round of a batch, or its next one; return whether there was one."""
        batch_id = state.batch_id
        if not state.open_round and state.status is Status.RUNNING:
            state = await self._begin(state)
        if not state.open_round:
            return False
        points.point("batch-round-begun")
        try:
            results = await self._given(state)
        except Retriable as away:
            self._waits_for[batch_id] = away.told
            raise
        self._waits_for.pop(batch_id, None)
        points.point("batch-round-given")
        request = self._step(state, "batch-round-ended", state.round)
        await self._submit(batch_id, batching.EndRound(request, results))
        return True

    async def _begin(self, state: Batch) -> Batch:
        now_ms = self._clock.now_ms()
        budgets: dict[str, int] = {}
        asked: Sequence[Asked] = ()
        if state.terms.rule.position:
            budgets = await self._budgets(target.site_id for _, target in state.waiting())
            asked = await self._asked(now_ms)
        targets = batch.next_round(state, budgets, asked, now_ms)
        if not targets:
            return state
        request = self._step(state, "batch-round-begun", state.round)
        begun = await self._submit(state.batch_id, batching.BeginRound(request, targets))
        return begun.state

    async def _given(self, state: Batch) -> tuple[Result, ...]:
        """Give the commands of the open round, all at once; they come into few commits."""
        results = []
        at_once = AT_ONCE if state.terms.kind is Kind.EXPORT else batch.TARGETS_PER_ROUND
        for some in _stretches(state.open_round, at_once):
            given = await asyncio.gather(
                *(self._one(state, number) for number in some), return_exceptions=True
            )
            for result in given:
                if isinstance(result, BaseException):
                    raise result  # the round stays open, and is given again
                results.append(result)
        return tuple(results)

    async def _one(self, state: Batch, number: int) -> Result:
        try:
            if state.terms.kind is Kind.EXPORT:
                return await self.exporting.one(state, number)
            ready = await self._prepared(state, number, state.behind.approved_by)
            outcome = accepted(await self._book.submit(ready.kind, ready.entity_id, ready.decide))
        except InvalidInput as refused:
            return _refused(number, refused.reason, refused.message)
        except MISTAKES:
            return _broken(state, number)
        return Result(number, batch.Outcome.DONE, outcome.revision)

    async def _tried(self, state: Batch, number: int) -> tuple[Result, Any]:
        """Return what would come of a target, and what the target is now."""
        entity = None
        try:
            if state.terms.kind is Kind.EXPORT:
                entity = await self._book.state_of(Meter, state.targets[number].target_id)
                return await self.exporting.tried(state, number), entity
            ready = await self._prepared(state, number, APPROVED)
            entity = await self._book.state_of(ready.kind, ready.entity_id)
            decision = ready.decide(entity)
            if isinstance(decision, Rejection):
                return _refused(number, decision.reason, decision.message), entity
            if isinstance(decision, Accepted) and decision.events:
                check_accepted(decision.events[-1])
        except InvalidInput as refused:
            return _refused(number, refused.reason, refused.message), entity
        except MISTAKES:
            return _broken(state, number), entity
        return Result(number, batch.Outcome.DONE), entity

    async def _prepared(self, state: Batch, number: int, approved_by: str) -> Prepared:
        """Return the command of a target. Raises InvalidInput where it cannot be one."""
        terms, target = state.terms, state.targets[number]
        reason = f"{terms.reason} (batch {state.batch_id})"
        content = (terms.kind.value, target.amount_minor, terms.method, terms.tariff_id)
        origin = replace(state.behind, approved_by=approved_by)
        request = step(
            self._clock.now_ms(),
            (*content, terms.policy_id),
            origin,
            "batch",
            state.batch_id,
            target.target_id,
        )
        match terms.kind:
            case Kind.FORCE_OFF | Kind.FORCE_ON | Kind.RESTORE_PREPAID:
                order = ForceRelay(
                    request, target.target_id, terms.rule.position, reason, is_one_of_many=True
                )
                return await self._approvals.prepared(order, target.seen)
            case Kind.PRICE | Kind.POLICY:
                change = ChangeTerms(
                    request, target.target_id, terms.tariff_id, terms.policy_id, reason
                )
                return await self._approvals.prepared(change, target.seen)
            case Kind.ADJUSTMENT:
                assert target.amount_minor is not None, "each target of an adjustment has one"
                adjustment = AdjustCredit(request, target.target_id, target.amount_minor, reason)
                return await self._approvals.prepared(adjustment, target.seen)
            case Kind.SALE:
                return await self._sale(request, state, target)
            case Kind.EXPORT:
                raise Bug("an export gives no command of the book")

    async def _sale(self, request: Request, state: Batch, target: Target) -> Prepared:
        of = await self._book.state_of(Account, target.target_id)
        by = await self._book.state_of(Policy, of.policy_id) if of else None
        assert target.amount_minor is not None, "each target of a sale has one"
        assert state.terms.method is not None, "a sale has a method"
        command = sale.Sell(
            request, target.target_id, target.amount_minor, state.terms.method, policy=by
        )
        return prepared_for(
            Account, target.target_id, account_commands.decide, command, target.seen
        )

    # --- what they need ---------------------------------------------------------------------------

    async def _asked(self, now_ms: int) -> list[Asked]:
        """Return which relays batches asked in the minute before, or may be asking now."""
        asked: list[Asked] = []
        for batch_id in await self._tables.open_batches(now_ms - MINUTE_MS):
            other = await self.of(batch_id)
            asked += other.asked
            asked += [Asked(site_id, now_ms, count) for site_id, count in other.reserved.items()]
        return asked

    async def _budgets(self, site_ids: Iterable[str]) -> dict[str, int]:
        """Return site → how many relays it lets move a minute."""
        budgets = {}
        for site_id in set(site_ids):
            site = await self._book.state_of(Site, site_id)
            assert site is not None, "meters stand at sites"
            budgets[site_id] = site.cuts_per_minute
        return budgets

    def _step(self, state: Batch, *name: object) -> Request:
        """Return the request of a step of a batch itself."""
        return step(self._clock.now_ms(), (), state.behind, *name, state.batch_id)

    async def _submit(self, batch_id: str, command: batching.Command) -> Outcome[Batch]:
        return await self._book.submit(
            Batch, batch_id, lambda state: batching.decide(state, command)
        )


def _stretches(numbers: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), at_once):
        yield numbers[first : first + at_once]


def _refused(number: int, reason: Reason, message: str) -> Result:
    is_skipped = reason in (Reason.NOTHING_CHANGES, Reason.CHANGED_SINCE)
    outcome = batch.Outcome.SKIPPED if is_skipped else batch.Outcome.REFUSED
    return Result(number, outcome, None, reason.value, message)


def _broken(state: Batch, number: int) -> Result:
    """Return the result of a target that a mistake of ours keeps from its own; log the mistake."""
    target_id = state.targets[number].target_id
    structlog.get_logger("vending").exception(
        "a target of a batch cannot be decided", batch=state.batch_id, target=target_id
    )
    text = "the service failed at it: look at it, and tell the operator of the platform"
    return _refused(number, Reason.INTERNAL, text)


def _known(state: Batch | None, request: Request) -> Decision:
    known = answered(state.answers, request) if state else None
    assert known is not None, "a batch knows the request that it came from"
    return known


def _folded(decision: Decision) -> Batch:
    """Return the batch that a decision would make of nothing."""
    assert isinstance(decision, Accepted), "a batch that is new is drafted"
    state: Batch | None = None
    for event in decision.events:
        state = batch.evolve(state, event)
    assert state is not None, "a batch that is drafted has an event"
    return state


def _state_of(entity: Meter | Account | None) -> str:
    """Return what a person sorts targets by: how a meter is forced, where an account is."""
    match entity:
        case Meter():
            return f"forced-{entity.forced}" if entity.forced else "prepaid"
        case Account():
            return entity.status.value
    return "unknown"
