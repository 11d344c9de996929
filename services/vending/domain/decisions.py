"""What deciders share: requests, their fingerprints, decisions, and the memory of answers."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from hashlib import sha256
from operator import attrgetter
from typing import Any, TypeVar

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain.events.event import Event, RequestKey
from services.vending.domain.origin import NOBODY, Origin

S = TypeVar("S")


@value_class
class Request:
    """Who asks what, once.

    `request_id`: a UUID as Python writes it; `fingerprint`: sha256 of the command's content;
    `origin`: who is behind it.
    """

    caller: str
    request_id: str
    fingerprint: bytes
    at_ms: int
    origin: Origin = NOBODY

    @property
    def key(self) -> RequestKey:
        """What makes two requests the same: ids are unique to a caller."""
        return (self.caller, self.request_id)


def fingerprint(command: str, *content: object) -> bytes:
    """Return the sha256 of a command's content, as the caller sent it (defaults unresolved)."""
    parts = [command.encode()]
    for part in content:
        text = repr(part).encode()
        parts += (len(text).to_bytes(8, "big"), text)
    return sha256(b"".join(parts)).digest()


@value_class
class Accepted:
    """These events happen, in one append; none: nothing changes and the state is the answer."""

    events: tuple[Event, ...]


@value_class
class Repeat:
    """The request was answered at `revision`: the same answer again."""

    revision: int


@value_class
class Rejection:
    """Nothing happens. `message` says what is wrong and what to do, `offers` for machines."""

    reason: Reason
    message: str
    field: str = ""
    offers: tuple[tuple[str, str], ...] = ()

    def as_error(self) -> InvalidInput:
        """Return what a caller is told."""
        return InvalidInput(self.reason, self.message, field=self.field, offers=self.offers)


Decision = Accepted | Repeat | Rejection


@value_class
class Answer:
    """Where the events of a request stand in the stream: revisions, rising, at least one."""

    fingerprint: bytes
    revisions: tuple[int, ...]

    def until(self, revision: int) -> "Answer | None":
        """Return the answer as it was at `revision`; None where there was none yet."""
        if self.revisions[-1] <= revision:
            return self
        earlier = tuple(number for number in self.revisions if number <= revision)
        return Answer(self.fingerprint, earlier) if earlier else None


@dataclass(slots=True)
class _Shared:
    """The answers of all states of a stream that grew one out of the other."""

    revision: int = -1
    known: dict[RequestKey, Answer] = field(default_factory=dict)


@value_class
class Answers:
    """The requests a stream has answered: an immutable map that its successors share.

    `revision` is the stream's. A successor adds to the one dict, and what lies above a value's own
    revision is not seen through it: adding is O(1), and old values stay as they were. Where a
    value gets a second successor (an append had failed), that one copies.
    """

    revision: int = -1
    _shared: _Shared = field(default_factory=_Shared, compare=False, repr=False)

    def get(self, key: RequestKey) -> Answer | None:
        """Return the answer to a request, where there is one."""
        answer = self._shared.known.get(key)
        return None if answer is None else answer.until(self.revision)

    def after(self, event: Event) -> "Answers":
        """Return the answers after one more event of the stream."""
        shared, revision = self._own(), self.revision + 1
        earlier = shared.known.get(event.key)
        revisions = () if earlier is None else earlier.revisions
        shared.known[event.key] = Answer(event.fingerprint, (*revisions, revision))
        shared.revision = revision
        return Answers(revision, shared)

    def passed(self) -> "Answers":
        """Return the answers after an event whose request need not be remembered."""
        shared = self._own()
        shared.revision = self.revision + 1
        return Answers(shared.revision, shared)

    def _own(self) -> _Shared:
        """Return what a successor may add to."""
        if self._shared.revision == self.revision:
            return self._shared
        known = {k: cut for k, a in self._shared.known.items() if (cut := a.until(self.revision))}
        return _Shared(self.revision, known)


def answered(answers: Answers, request: Request) -> Repeat | Rejection | None:
    """Return what a request gets that was answered before; None for a new one."""
    earlier = answers.get(request.key)
    if earlier is None:
        return None
    if earlier.fingerprint != request.fingerprint:
        return reused(request)
    return Repeat(earlier.revisions[-1])


def reused(request: Request) -> Rejection:
    """Return the refusal of a request id that came before with other content."""
    return Rejection(
        Reason.REQUEST_ID_REUSED,
        f"request {request.request_id} of {request.caller} was sent before with other content; "
        "a new command needs a new request_id",
        "request_id",
    )


def stamp(request: Request) -> dict[str, Any]:
    """Return the fields that every event of a request has."""
    return {
        "caller": request.caller,
        "request_id": request.request_id,
        "fingerprint": request.fingerprint,
        "occurred_at_ms": request.at_ms,
        "origin": request.origin,
    }


@cache
def _values_of(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    return attrgetter(*(known.name for known in fields(kind)))


def changed(state: S, **changes: Any) -> S:
    """Return a folded state with some fields changed: dataclasses.replace, in a third of the time.

    For what is a class of values without checks of its own.
    """
    kind: Any = type(state)
    made: S = kind(*_values_of(kind)(state))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def first_problem(*problems: Rejection | None) -> Rejection | None:
    """Return the first that is one."""
    return next((problem for problem in problems if problem is not None), None)
