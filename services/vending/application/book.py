"""The book: a mailbox a stream, which decides what waits on the evolving state and appends once.

Every command goes through here: load the stream, fold, decide, append at the revision it was
decided on. Where an append's outcome is unknown the stream is read again, and the state, which
remembers its requests, tells whether it happened.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar
from uuid import UUID

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime import codec, points
from services.vending.application.process import Failing
from services.vending.application.stored import event_of
from services.vending.domain import chain, tables
from services.vending.domain.decisions import (
    Accepted,
    Decision,
    Rejection,
    Repeat,
)
from services.vending.domain.event_store import (
    NO_EVENTS,
    Appended,
    EventExists,
    EventStore,
    NameTaken,
    NewEvent,
    NotTheWriter,
    StoreUnavailable,
    StoreWentBack,
    StreamId,
    WrongRevision,
)
from services.vending.domain.events.corrections import CorrectionRefused
from services.vending.domain.events.event import Event
from services.vending.domain.events.refunds import RefundRefused, TransferReturned
from services.vending.domain.events.sales import EmergencyRefused, SaleRefused
from services.vending.domain.origin import Origin
from services.vending.domain.streams import State, evolve_of, stream_of
from services.vending.metrics import Metrics

COMMANDS_PER_APPEND_MAX = 256
ATTEMPTS_MAX = 4
STATES_CACHED_MAX = 20_000
DECIDED_KEPT_MAX = 10_000
FOLDED_IN_A_ROW = 32
"""Events of a long stream between two turns of the loop: a ms, or 16 where each has 256 meters."""
REFUSALS = (SaleRefused, EmergencyRefused, CorrectionRefused, RefundRefused, TransferReturned)
"""Events that say why something did not come about."""
WENT_BACK = (
    "commands are refused, so that nothing is sold twice or lost; start vending anew, which "
    "compares the event store with ledger and says what to do"
)

S = TypeVar("S", bound=State)
E = TypeVar("E", bound=Event)


@value_class
class Outcome(Generic[S]):
    """What became of a command: the state after it, at `revision`, and the event that ended it.

    A repeat has those of the first time.
    """

    state: S
    revision: int
    event: Event | None


def accepted(outcome: Outcome[S]) -> Outcome[S]:
    """Return an outcome. Raises InvalidInput where the book took down a refusal."""
    check_accepted(outcome.event)
    return outcome


def check_accepted(event: Event | None) -> None:
    """Raise InvalidInput where an event takes down a refusal."""
    if isinstance(event, REFUSALS):
        raise InvalidInput(Reason(event.reason), event.message)


@value_class
class _Folded:
    state: Any = None
    revision: int = NO_EVENTS
    last_hash: bytes = chain.GENESIS


@dataclass(slots=True)
class _Command:
    decide: Callable[[Any], Decision]
    done: asyncio.Future[Outcome[Any]]


@value_class
class _Plan:
    """What a group of commands comes to on one state."""

    folded: _Folded
    events: list[NewEvent]
    decided: "list[Decided]"
    answers: "list[tuple[_Command, _Answer]]"

    @property
    def is_simple(self) -> bool:
        """Whether an append is all that it needs: nothing is to be read for an answer."""
        return bool(self.events) and not any(isinstance(a, Repeat) for _, a in self.answers)


Decided = tuple[Event, State, bytes]
"""An event, its stream's state after it, and the hash of what was stored."""
_Answer = Outcome[Any] | Repeat | Rejection | Exception


class Book:
    """The streams of one event store, all written through here."""

    def __init__(
        self, store: EventStore, metrics: Metrics, *, states_cached_max: int = STATES_CACHED_MAX
    ) -> None:
        """Use `store`; nothing else may write to it."""
        self._store = store
        self._appends = cache(metrics.appends.labels)
        self._appended_of = cache(metrics.appended.labels)
        self._states_cached_max = states_cached_max
        self._cache: OrderedDict[StreamId, _Folded] = OrderedDict()
        self._mailboxes: dict[StreamId, deque[_Command]] = {}
        self._careful: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._decided: OrderedDict[UUID, Decided] = OrderedDict()
        self.refusing = ""
        self.is_superseded = False
        self.failing = Failing()

    async def submit(
        self, kind: type[S], entity_id: str, decide: Callable[[S | None], Decision]
    ) -> Outcome[S]:
        """Decide a command on an entity's state; return when its events are durable.

        Raises InvalidInput where it is rejected, Retriable where the store or the book cannot.
        """
        if self.refusing:
            raise Retriable(self.refusing)
        stream = stream_of(kind, entity_id)
        done: asyncio.Future[Outcome[Any]] = asyncio.get_running_loop().create_future()
        mailbox = self._mailboxes.get(stream)
        if mailbox is not None:  # an append of this stream is under way
            mailbox.append(_Command(decide, done))
        else:
            self._mailboxes[stream] = deque((_Command(decide, done),))
            self._idle.clear()
            self._next(stream)
        return await done

    async def check_writer(self) -> None:
        """Learn without a command that the store is another's by now, or went back.

        Raises Retriable where commands are refused, or the store cannot say.
        """
        if self.refusing:  # whoever writes it now may be starting anew: its lock is left alone
            raise Retriable(self.refusing)
        with self._giving_up():
            await self._store.check_writer()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Refuse all commands from now on where the store will take nothing of ours any more."""
        try:
            yield
        except NotTheWriter as lost:
            self.refusing, self.is_superseded = str(lost), True
            raise
        except StoreWentBack as lost:
            self.refusing = f"{lost}: {WENT_BACK}"
            raise Retriable(self.refusing) from lost

    async def state_of(self, kind: type[S], entity_id: str) -> S | None:
        """Return an entity's newest durable state; None where it does not exist."""
        stream = stream_of(kind, entity_id)
        if (cached := self._cache.get(stream)) is not None:
            self._cache.move_to_end(stream)
            known: S | None = cached.state
            return known
        folded = await self._load(stream)
        if folded.revision > NO_EVENTS and stream not in self._mailboxes:
            # A mailbox that came and went meanwhile knows better than what was read.
            folded = self._cache.get(stream, folded)
            self._keep(stream, folded)
        state: S | None = folded.state
        return state

    def decided(self, event_id: UUID) -> Decided | None:
        """Hand over, once, what was stored a moment ago: whoever reads it need not fold it again.

        None where that is longer ago, or was not here: then the store alone knows.
        """
        return self._decided.pop(event_id, None)

    async def origin_at(self, position: int) -> Origin:
        """Return where the event at a position came from."""
        there = await self._store.event_at(position)
        assert there is not None, f"an event was stored at position {position}"
        return chain.read_meta(there.meta).origin

    async def head(self) -> int:
        """Return the position of the last event."""
        return await self._store.head()

    async def event_at(self, stream: StreamId, revision: int) -> Event:
        """Return an event by its place."""
        return event_of((await self._store.read(stream, revision - 1))[0])

    async def history(self, kind: type[S], entity_id: str) -> list[Event]:
        """Return all events of an entity's stream, in order: for what is asked now and then."""
        return [event_of(stored) for stored in await self._store.read(stream_of(kind, entity_id))]

    async def events_of(self, kind: type[S], entity_id: str, event: type[E]) -> list[E]:
        """Return the events of a type in an entity's stream, in order.

        It reads the whole stream: for what is asked now and then.
        """
        found: list[E] = []
        for stored in await self._store.read(stream_of(kind, entity_id)):
            if stored.type == event.SUBJECT:
                said = event_of(stored)
                assert isinstance(said, event)
                found.append(said)
        return found

    async def drained(self) -> None:
        """Wait until every command that was submitted is answered."""
        while self._mailboxes:
            await self._idle.wait()

    def _next(self, stream: StreamId) -> None:
        """Decide what waits in a mailbox and append it; when that is stored, what came meanwhile.

        Without a task where the state is at hand: a task costs as much as a decision.
        """
        mailbox = self._mailboxes[stream]
        commands: list[_Command] = []
        while mailbox and len(commands) < COMMANDS_PER_APPEND_MAX:
            command = mailbox.popleft()
            # Who stopped waiting before the decision repeats the request, or does not want it.
            if not command.done.done():
                commands.append(command)
        if not commands:
            self._end(stream)
            return
        folded = self._cache.get(stream)
        plan = None if folded is None else _plan(stream, folded, commands)
        if folded is None or plan is None or not plan.is_simple:
            self._take_care(stream, commands)
            return
        points.point("decided")
        appending = asyncio.ensure_future(self._store.append(stream, folded.revision, plan.events))
        appending.add_done_callback(partial(self._stored, stream, commands, plan))

    def _stored(
        self,
        stream: StreamId,
        commands: Sequence[_Command],
        plan: _Plan,
        appending: asyncio.Future[Appended],
    ) -> None:
        failed = asyncio.CancelledError() if appending.cancelled() else appending.exception()
        if failed is not None:
            if isinstance(failed, Retriable):  # a refusal is counted where it is answered
                self._appends("retried").inc()
            self._cache.pop(stream, None)
            self._take_care(stream, commands)
            return
        self._appended(stream, plan)
        for command, answer in plan.answers:
            _answer(command, answer)
        self._go_on(stream)

    def _go_on(self, stream: StreamId) -> None:
        if self._mailboxes[stream]:
            self._next(stream)
        else:
            self._end(stream)

    def _end(self, stream: StreamId) -> None:
        del self._mailboxes[stream]
        if not self._mailboxes:
            self._idle.set()

    def _take_care(self, stream: StreamId, commands: Sequence[_Command]) -> None:
        """Do in a task what needs to read, or to try again."""
        careful = asyncio.create_task(self._carefully(stream, commands), name=f"book {stream}")
        self._careful.add(careful)
        careful.add_done_callback(self._careful.discard)

    async def _carefully(self, stream: StreamId, commands: Sequence[_Command]) -> None:
        try:
            await self._handle(stream, commands)
        except Exception as failed:  # noqa: BLE001 - it is handed to whoever asked
            self._cache.pop(stream, None)
            _fail(commands, failed)
        self._go_on(stream)

    async def _handle(self, stream: StreamId, commands: Sequence[_Command]) -> None:
        failed: Exception | None = None
        for _ in range(ATTEMPTS_MAX):
            folded = await self._load(stream)
            plan = _plan(stream, folded, commands)
            points.point("decided")
            try:
                if plan.events:
                    with self._giving_up():
                        await self._store.append(stream, folded.revision, plan.events)
            except (WrongRevision, StoreUnavailable) as unknown:
                # Perhaps it is stored: the state will know the requests.
                self._appends("retried").inc()
                self._cache.pop(stream, None)
                failed = unknown
                continue
            except (EventExists, NameTaken) as taken:
                self._appends("refused").inc()
                self._cache.pop(stream, None)
                await self._one_by_one(stream, commands, taken)
                return
            self._appended(stream, plan)
            for command, answer in plan.answers:
                if isinstance(answer, Repeat):
                    answer = await self._outcome_at(stream, answer.revision)  # noqa: PLW2901
                _answer(command, answer)
            return
        assert failed is not None
        raise failed

    async def _one_by_one(
        self, stream: StreamId, commands: Sequence[_Command], taken: EventExists | NameTaken
    ) -> None:
        """Find the command that the store refuses; the others go on."""
        if len(commands) == 1:
            _fail(commands, _refusal(taken).as_error())
            return
        for command in commands:
            await self._handle(stream, [command])

    def _appended(self, stream: StreamId, plan: _Plan) -> None:
        self._keep(stream, plan.folded)
        if plan.events:
            self._appends("stored").inc()
            for event, decided in zip(plan.events, plan.decided, strict=True):
                self._appended_of(event.type).inc()
                self._decided[event.id] = decided
            while len(self._decided) > DECIDED_KEPT_MAX:
                self._decided.popitem(last=False)

    async def _outcome_at(self, stream: StreamId, revision: int) -> Outcome[Any]:
        """Return what a request came to when it was answered first."""
        evolve = evolve_of(stream)
        state, event = None, None
        for stored in await self._store.read(stream):
            if stored.revision > revision:
                break
            event = event_of(stored)
            state = evolve(state, event)
        assert state is not None, f"{stream} has no revision {revision}"
        return Outcome(state, revision, event)

    async def _load(self, stream: StreamId) -> _Folded:
        if (cached := self._cache.get(stream)) is not None:
            self._cache.move_to_end(stream)
            return cached
        evolve = evolve_of(stream)
        folded = _Folded()
        for number, stored in enumerate(await self._store.read(stream), 1):
            state = evolve(folded.state, event_of(stored))
            folded = _Folded(state, stored.revision, chain.stored_hash(stored))
            if number % FOLDED_IN_A_ROW == 0:
                await asyncio.sleep(0)  # others are answered on this loop too
        return folded

    def _keep(self, stream: StreamId, folded: _Folded) -> None:
        self._cache[stream] = folded
        self._cache.move_to_end(stream)
        if len(self._cache) > self._states_cached_max:
            self._cache.popitem(last=False)


def _plan(stream: StreamId, folded: _Folded, commands: Sequence[_Command]) -> _Plan:
    """Decide the commands one after the other, each on the state that the one before left."""
    base = folded.revision
    events: list[NewEvent] = []
    decided: list[Decided] = []
    answers: list[tuple[_Command, _Answer]] = []
    fresh: dict[int, Outcome[Any]] = {}
    for command in commands:
        answer: _Answer
        try:
            decision = command.decide(folded.state)
            if isinstance(decision, Accepted):
                event: Event | None = None
                new: list[NewEvent] = []
                after: list[Decided] = []
                of_all = folded
                for event in decision.events:  # all of them, or, where one cannot be sealed, none
                    sealed, of_all = _seal(stream, of_all, event)
                    new.append(sealed)
                    after.append((event, of_all.state, of_all.last_hash))
                folded = of_all
                events += new
                decided += after
                answer = Outcome(folded.state, folded.revision, event)
                if event is not None:
                    fresh[folded.revision] = answer
            elif isinstance(decision, Repeat) and decision.revision > base:
                answer = fresh[decision.revision]
            else:
                answer = decision
        except Exception as failed:  # noqa: BLE001 - it fails its command, not the neighbours
            answer = failed
        answers.append((command, answer))
    return _Plan(folded, events, decided, answers)


def _seal(stream: StreamId, folded: _Folded, event: Event) -> tuple[NewEvent, _Folded]:
    """Give an event its identity and its place in the hash chain of its stream.

    The identity derives from the request alone: the store refuses it when it comes in another
    stream, which is another command.
    """
    state = evolve_of(stream)(folded.state, event)
    answer = state.answers.get(event.key)
    number = 1 if answer is None else len(answer.revisions)  # None: it comes once by itself
    event_id = name_uuid("event", event.caller, event.request_id, number)
    data = codec.encode(event.SUBJECT, event.record())
    meta = chain.meta_of(codec.schema_header(event.SUBJECT), folded.last_hash, event.origin)
    revision = folded.revision + 1
    last_hash = chain.hash_of(stream, revision, event.SUBJECT, data, meta)
    return NewEvent(event_id, event.SUBJECT, data, meta), _Folded(state, revision, last_hash)


def _refusal(taken: EventExists | NameTaken) -> Rejection:
    if isinstance(taken, EventExists):
        return Rejection(
            Reason.REQUEST_ID_REUSED,
            "this request_id of this caller was sent before with another command; "
            "a new command needs a new request_id",
            "request_id",
        )
    if taken.kind == tables.SERIAL:
        return Rejection(
            Reason.SERIAL_TAKEN,
            f"serial {taken.name} is meter {taken.owner}'s; compare it with the meter's plate",
            "serial",
        )
    if taken.kind == tables.BUS_ADDRESS:
        return Rejection(
            Reason.ALREADY_EXISTS,
            f"bus address {taken.name} (line/unit) is meter {taken.owner}'s; "
            "give each meter of a line an address of its own",
            "unit",
        )
    if taken.kind == tables.GATEWAY_ADDRESS:
        return Rejection(
            Reason.ALREADY_EXISTS,
            f"address {taken.name} is gateway {taken.owner}'s; "
            "a gateway is registered once, with all its meters",
            "address",
        )
    return Rejection(
        Reason.KEY_COLLISION,
        f"this id and {taken.owner} would share the {taken.kind} {taken.name}; choose another id",
        "id",
    )


def _answer(command: _Command, answer: "_Answer") -> None:
    if command.done.done():
        return
    match answer:
        case Outcome():
            command.done.set_result(answer)
        case Rejection():
            command.done.set_exception(answer.as_error())
        case Exception():
            command.done.set_exception(answer)
        case Repeat():
            raise AssertionError("a repeat is answered with what it came to the first time")


def _fail(commands: Sequence[_Command], failed: Exception) -> None:
    for command in commands:
        if not command.done.done():
            command.done.set_exception(failed)
