"""Approvals: what one person may not do alone waits for another, and is carried out once.

Three appends: the approval, in the proposal's stream; the command that was proposed, in its own
stream, by a request that derives from the proposal; how that ended, in the proposal's stream again.
What is approved and not concluded is known from the store, so a process that dies in between goes
on where it was.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import MISSING, fields, replace
from functools import partial
from typing import Any

import orjson

from services.common.kernel.clock import Clock
from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime import points
from services.vending.application.book import Book, Outcome, accepted
from services.vending.application.process import decided_and_overdue, step
from services.vending.domain import approval, checks
from services.vending.domain.approval import Failure, Proposal, Status
from services.vending.domain.authority import ACTION, PROPOSALS_LAST_MS_DEFAULT, Authority
from services.vending.domain.decisions import Accepted, Decision, Repeat, Request, answered
from services.vending.domain.origin import NOBODY
from services.vending.domain.seen import Seen, changed_since, seen
from services.vending.domain.streams import stream_of
from services.vending.domain.tables import APPROVAL, Tables

CarryOut = Callable[[], Coroutine[Any, Any, Proposal]]
SEEN = "seen"
"""Where in a proposal it stands what the command depends on; no command has such a field."""


@value_class
class Guarded:
    """A command that may need a second person.

    `made`: its class. It is decided by `decide` in the stream of a `kind`, whose id the field `of`
    has, and whose legal entity (the command's, where that has none) says what one person may do
    alone. `completed`: adds to the command what the book knows besides; `named`: makes of it what
    is proposed, by the state it was judged on; `said`: what of its fields with a default is
    proposed too, where it is not that.
    `around`: carries out what was approved between what must come before and after it, by the id;
    who asks for such a command is within that already.
    """

    made: type[Any]
    kind: type[Any]
    of: str
    decide: Callable[[Any, Any], Decision]
    completed: Callable[[Any], Awaitable[Any]] | None = None
    named: Callable[[Any, Any], Any] | None = None
    said: tuple[str, ...] = ()
    around: Callable[[str, CarryOut], Awaitable[Proposal]] | None = None


@value_class
class Prepared:
    """What is to be decided in the stream of an entity, by all that it takes."""

    kind: type[Any]
    entity_id: str
    decide: Callable[[Any], Decision]


def prepared_for(
    kind: type[Any],
    entity_id: str,
    decide: Callable[[Any, Any], Decision],
    command: Any,
    was: Seen | None,
) -> Prepared:
    """Return a command that is done only where all that it depends on is as it `was`."""

    def as_it_was(state: Any) -> Decision:
        decision = decide(state, command)
        if was and isinstance(decision, Accepted):
            return changed_since(was, seen(state, command)) or decision
        return decision

    return Prepared(kind, entity_id, as_it_was)


class Approvals:
    """Commands that may need a second person, by the names that stand in proposals."""

    def __init__(
        self, book: Book, tables: Tables, clock: Clock, commands: Mapping[str, Guarded]
    ) -> None:
        """Use `book`; `tables` know what waits."""
        self._book = book
        self._tables = tables
        self._clock = clock
        self._commands = commands
        self._names = {guarded.made: name for name, guarded in commands.items()}
        self._carrying_out = asyncio.Lock()

    async def ask(self, command: Any) -> Outcome[Any]:
        """Do what one person may do alone; what needs another becomes a proposal.

        Raises InvalidInput(APPROVAL_REQUIRED), which names the proposal. The same request, sent
        again when it was approved, gets the answer of the command.
        """
        approval_id = approval.approval_id_of(command.request)
        proposal = await self._book.state_of(Proposal, approval_id)
        if proposal is None:
            try:
                return await self.do(command)
            except InvalidInput as refused:
                if refused.reason is not Reason.APPROVAL_REQUIRED:
                    raise
                proposal = await self._propose(command, refused.offers[ACTION])
                why = refused.message
        else:
            why = f"{proposal.action} needs a second person"
            known = answered(proposal.answers, command.request)
            if not isinstance(known, Repeat):
                assert known is not None, "a proposal knows the request that it came from"
                raise known.as_error()
        return await self._answer_of(proposal, why)

    async def approve(self, command: approval.Approve) -> Proposal:
        """Let a proposal happen, and carry it out."""
        await self._submit(command.approval_id, command)
        return await self.carry_out(command.approval_id)

    async def decline(self, command: approval.Decline) -> Proposal:
        """Let a proposal not happen."""
        return (await self._submit(command.approval_id, command)).state

    async def proposal(self, approval_id: str) -> Proposal:
        """Return a proposal. Raises InvalidInput(APPROVAL_NOT_FOUND)."""
        checks.check_uuid("approval_id", approval_id)
        found = await self._book.state_of(Proposal, approval_id)
        if found is None:
            raise approval.approval_not_found(approval_id).as_error()
        return found

    async def pending(
        self, legal_entity: str, after: int, limit: int
    ) -> tuple[list[Proposal], int | None]:
        """Return what waits for a second person, oldest first, and where to go on if there is more.

        Of a legal entity or, "", of all; `after`: 0, or where the page before ended.
        """
        found = await self._tables.waiting(APPROVAL, legal_entity, after, limit + 1)
        last = found[limit - 1][0] if len(found) > limit else None
        return [await self.proposal(approval_id) for _, approval_id in found[:limit]], last

    async def complete(self) -> int:
        """Carry out what is approved, end what nobody approved in time; return how many."""
        return await decided_and_overdue(
            self._book.failing,
            self._tables,
            APPROVAL,
            self._clock,
            carry_out=self.carry_out,
            end=self._expire,
        )

    async def _expire(self, approval_id: str, now_ms: int) -> None:
        request = step(now_ms, (), NOBODY, "expire", approval_id)
        await self._submit(approval_id, approval.Expire(request, approval_id))

    async def carry_out(self, approval_id: str) -> Proposal:
        """Do what was approved, where it is not done yet; return the proposal after it."""
        proposal = await self.proposal(approval_id)
        guarded = self._commands.get(proposal.command)
        carry_out = partial(self._carried_out, approval_id)
        if proposal.status is not Status.APPROVED or guarded is None or guarded.around is None:
            return await carry_out()
        return await guarded.around(orjson.loads(proposal.content)[guarded.of], carry_out)

    async def _carried_out(self, approval_id: str) -> Proposal:
        """Carry out one at a time: what one finds refused another must not find possible."""
        async with self._carrying_out:
            proposal = await self.proposal(approval_id)
            if proposal.status is not Status.APPROVED:
                return proposal
            return await self._carry_out(proposal)

    async def _carry_out(self, proposal: Proposal) -> Proposal:
        approval_id = proposal.approval_id
        points.point("approved")
        revision, failure = -1, None
        try:
            revision = (await self.do(*self._proposed(proposal))).revision
        except InvalidInput as refused:
            failure = Failure(refused.reason.value, refused.message)
        points.point("carried-out")
        request = step(self._clock.now_ms(), (), proposal.proposer, "conclude", approval_id)
        concluded = approval.Conclude(request, approval_id, revision, failure)
        return (await self._submit(approval_id, concluded)).state

    async def _answer_of(self, proposal: Proposal, why: str) -> Outcome[Any]:
        """Return what a request gets that became a proposal, or raise what it gets instead."""
        proposal = await self._carried_out(proposal.approval_id)
        match proposal.status:
            case Status.EXECUTED:
                return await self.do(*self._proposed(proposal))  # a repeat
            case Status.FAILED if proposal.failure:
                raise InvalidInput(Reason(proposal.failure.reason), proposal.failure.message)
            case Status.DECLINED:
                by = proposal.decider.who if proposal.decider else ""
                text = f"{by} declined proposal {proposal.approval_id}: {proposal.reason}"
                raise InvalidInput(Reason.APPROVAL_DECLINED, text)
            case Status.PENDING if self._clock.now_ms() < proposal.expires_at_ms:
                raise InvalidInput(
                    Reason.APPROVAL_REQUIRED,
                    f"{why}: it waits as proposal {proposal.approval_id}; when another person has "
                    "approved it, repeat with the same request_id to get the answer",
                )
            case Status.PENDING | Status.EXPIRED:
                raise approval.expired(proposal).as_error()
        raise Bug(f"proposal {proposal.approval_id} is {proposal.status} and has no answer")

    async def do(self, command: Any, was: Seen | None = None) -> Outcome[Any]:
        """Do a command that one person may do alone, or that carries its approval.

        Raises InvalidInput: APPROVAL_REQUIRED for another, no proposal comes of it; CHANGED_SINCE
        where what it was judged on is not as it `was`.
        """
        ready = await self.prepared(command, was)
        return accepted(await self._book.submit(ready.kind, ready.entity_id, ready.decide))

    async def prepared(self, command: Any, was: Seen | None = None) -> Prepared:
        """Return a command with what the book knows besides; done where all is as it `was`."""
        guarded = self._guarded(command)
        entity_id = getattr(command, guarded.of)
        if guarded.completed is not None:
            command = await guarded.completed(command)
        if guarded.kind is not Authority:  # which is its own
            command = replace(command, authority=await self._authority(command))
        return prepared_for(guarded.kind, entity_id, guarded.decide, command, was)

    async def _authority(self, command: Any) -> Authority | None:
        """Return what one person may do alone where a command would happen."""
        guarded = self._guarded(command)
        target = await self._book.state_of(guarded.kind, getattr(command, guarded.of))
        if target is None:
            return None
        return await self._book.state_of(Authority, _entity_of(target, command))

    async def _propose(self, command: Any, action: str) -> Proposal:
        guarded = self._guarded(command)
        entity_id = getattr(command, guarded.of)
        target = await self._book.state_of(guarded.kind, entity_id)
        authority = await self._authority(command)
        if guarded.completed is not None:
            command = await guarded.completed(command)
        named = guarded.named(target, command) if guarded.named else command
        proposed = approval.Propose(
            command.request,
            _entity_of(target, command),
            action,
            stream_of(guarded.kind, entity_id),
            self._names[type(command)],
            _content_of(named, guarded.said, seen(target, command)),
            authority.proposals_last_ms if authority else PROPOSALS_LAST_MS_DEFAULT,
        )
        approval_id = approval.approval_id_of(command.request)
        return (await self._submit(approval_id, proposed)).state

    def _guarded(self, command: Any) -> Guarded:
        return self._commands[self._names[type(command)]]

    def _proposed(self, proposal: Proposal) -> tuple[Any, Seen]:
        """Return the command that was proposed, by a request of its own, and what was seen."""
        approver = proposal.decider
        assert approver is not None, "only what was approved is carried out"
        content = proposal.content
        request: Request = step(
            self._clock.now_ms(),
            (proposal.command, content),
            replace(proposal.proposer, approved_by=approver.who),
            "approved",
            proposal.approval_id,
        )
        said = orjson.loads(content)
        was = said.pop(SEEN, {})
        return self._commands[proposal.command].made(request, **said), was

    async def _submit(self, approval_id: str, command: approval.Command) -> Outcome[Proposal]:
        return await self._book.submit(
            Proposal, approval_id, lambda state: approval.decide(state, command)
        )


def _entity_of(target: Any, command: Any) -> str:
    """Return the legal entity in which a command would happen; `target`: None where it is new."""
    entity: str = (target.legal_entity if target else "") or command.legal_entity
    return entity


def _content_of(command: Any, besides: tuple[str, ...], depends_on: Seen) -> str:
    """Return the JSON of what a caller said; what has a default was added to it here.

    Of that only `besides` are proposed, where they are not as by default. What it `depends_on`
    stands beside it.
    """
    said = {
        field.name: value
        for field in fields(command)
        if field.name != "request"
        and (field.default is MISSING or field.name in besides)
        and (value := getattr(command, field.name)) != field.default
    }
    if depends_on:
        said[SEEN] = depends_on
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS).decode()
