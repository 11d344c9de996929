"""What every handler needs: who asks what and when it is its turn, and versions of the book."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from services.common.kernel.clock import Clock
from services.common.runtime.grpc import Call
from services.vending.application.gathering import Gathering
from services.vending.application.office import Office
from services.vending.domain import checks
from services.vending.domain.decisions import Answers, Request, fingerprint
from services.vending.domain.origin import Origin
from services.vending.metrics import Metrics
from wattvend.vending.v1 import vending_pb2 as pb

ANSWER_MARGIN_S = 0.5
"""What is kept of a call's deadline to send the answer that nothing came."""
WAIT_MAX_S = 60.0
"""How long a call waits at most, whatever its deadline: it takes the place of another meanwhile."""
M = TypeVar("M")

_AS_IT_IS = (str, int, bytes)


class _State(Protocol):
    """What is folded from a stream."""

    @property
    def answers(self) -> Answers:
        """The requests it answered; their revision is the stream's."""
        ...


S = TypeVar("S", bound=_State)


def fingerprint_of(message: Message) -> bytes:
    """Return that of what is set in a request, less its id.

    It stays when the message gains a field, so a repeat is one across an upgrade too.
    """
    content = [
        (field.name, value if type(value) in _AS_IT_IS else _plain(value))
        for field, value in message.ListFields()
        if field.name != "request_id"
    ]
    return fingerprint(message.DESCRIPTOR.name, *content)


def _content_of(message: Message) -> list[tuple[str, object]]:
    return [(field.name, _plain(value)) for field, value in message.ListFields()]


def _plain(value: Any) -> object:
    """Return a field's value as what has the same repr in every release of protobuf."""
    if isinstance(value, _AS_IT_IS):
        return value
    if isinstance(value, Message):
        return _content_of(value)
    if isinstance(value, Mapping):
        return sorted((key, _plain(part)) for key, part in value.items())
    return [_plain(part) for part in value]


class Desk:
    """Where the calls of all services of vending come in. One of it: they gather together."""

    def __init__(
        self,
        office: Office,
        clock: Clock,
        metrics: Metrics,
        book_epoch: Callable[[], int],
        timeout_s: float,
    ) -> None:
        """Answer for `office`; `timeout_s`: how long a call lasts whose client set no deadline."""
        self.office = office
        self.clock = clock
        self.metrics = metrics
        self._gathering = Gathering()
        self._book_epoch = book_epoch
        self._timeout_s = timeout_s

    async def request(self, message: Any, call: Call) -> Request:
        """Return who asks what, when it is its turn."""
        await self._gathering.turn()
        if call.actor:
            checks.check_actor(call.actor)
        return Request(
            call.caller,
            checks.request_id_of(message.request_id),
            fingerprint_of(message),
            self.clock.now_ms(),
            Origin(call.caller, call.actor, call.peer),
        )

    def version(self, revision: int) -> pb.BookVersion:
        """Return the version of a stream."""
        return pb.BookVersion(book_epoch=self._book_epoch(), revision=revision)

    def told(self, message: Callable[[S, pb.BookVersion], M], state: S) -> M:
        """Return the message of a state, with its version."""
        return message(state, self.version(state.answers.revision))

    def wait_s(self, call: Call) -> float:
        """Return how long a call may wait for what comes by itself: an echo, an operation's end."""
        lasts_s = self._timeout_s if call.remaining_s is None else call.remaining_s
        return min(max(0.0, lasts_s - ANSWER_MARGIN_S), WAIT_MAX_S)


class Handlers:
    """Methods of a service, which ask the office. They raise errors; the Guard maps them.

    `context` of every method is the Guard's Call.
    """

    def __init__(self, desk: Desk) -> None:
        """Take calls at `desk`."""
        self._desk = desk
        self._office = desk.office


def said(request: Any, name: str) -> Any:
    """Return an optional field of a request; None where the caller left it out."""
    return getattr(request, name) if request.HasField(name) else None
