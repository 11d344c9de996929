"""From the bytes of the shard log to what `absorb` takes; dead letters and their bound."""

from collections import deque
from collections.abc import Iterable

from services.common.kernel.envelope import Envelope
from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.frames import ReadingFrame
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime import codec
from services.common.runtime.topics import catalogue
from services.metering.domain.messages import LogRecord

TOPIC = "shard-log"
FRAME = "reading-frame"

DEAD_FREE = 10
DEAD_WINDOW = 1_000
DEAD_SHARE_MAX_PERCENT = 10

Headers = list[tuple[str, bytes]]


class Undecodable(Bug):
    """A record that carries money, or that nobody can tell the kind of, cannot be decoded."""


class TooManyDead(Bug):
    """So many frames cannot be decoded that this deploy, not the frames, must be wrong."""


def place_of(shard: int, offset: int) -> str:
    """Return where a record of the shard log stands, as causation ids and log lines name it."""
    return f"{TOPIC}-{shard}-{offset}"


@value_class
class Raw:
    """One record of the shard log as Kafka has it. `timestamp_ms` is its LogAppendTime."""

    shard: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def place(self) -> str:
        """Where it stands."""
        return place_of(self.shard, self.offset)


@value_class
class Opened:
    """A record that `absorb` can take, and the trace it belongs to."""

    record: LogRecord
    traceparent: str


@value_class
class Dead:
    """A frame that cannot be decoded, and why."""

    why: str

    def headers(self, raw: Raw) -> Headers:
        """Return the headers of its dead letter: its own, the reason, and where it stood."""
        return [
            *raw.headers,
            ("dlq_reason", self.why.encode()),
            ("dlq_topic", TOPIC.encode()),
            ("dlq_partition", str(raw.shard).encode()),
            ("dlq_offset", str(raw.offset).encode()),
        ]


def opened(raw: Raw) -> Opened | Dead:
    """Return the record, or why its frame is dead. Raises Undecodable for anything else.

    What says of itself that it is a frame is taken for one. Everything else may be a fact, and
    the order of facts carries money: it stops the shard.
    """
    try:
        return _decoded(raw)
    except InvalidInput as odd:
        if claims_frame(raw.headers):
            return Dead(odd.message)
        raise Undecodable(
            f"{raw.place} cannot be decoded and is no reading frame, so the shard stops: "
            f"{odd.message}. Find who wrote it; deploy a metering that can read it"
        ) from odd


def _decoded(raw: Raw) -> Opened:
    envelope = Envelope.from_headers(raw.headers)
    if envelope.subject not in catalogue().topics[TOPIC].values:
        raise InvalidInput(Reason.INVALID_ARGUMENT, f"{TOPIC} has no place for a {envelope.schema}")
    if raw.value is None:
        raise InvalidInput(Reason.INVALID_ARGUMENT, f"a {envelope.schema} without a value")
    value = codec.decode(envelope.schema, raw.value)
    frame = ReadingFrame.from_record(value) if envelope.subject == FRAME else None
    return Opened(
        LogRecord(raw.offset, raw.timestamp_ms, envelope.subject, frame or value),
        envelope.traceparent,
    )


def claims_frame(headers: Iterable[tuple[str, bytes]]) -> bool:
    """Say whether a record names itself a reading frame."""
    return any(
        name == "schema" and (value or b"").partition(b"/")[0] == FRAME.encode()
        for name, value in headers
    )


class DeadLetterBound:
    """Counts frames: a few dead ones are the field's, a tenth of them is a bad deploy.

    Only the free ones may die in a row from the start: so many at most each start of a worker
    whose supervisor tries again and again, ever more slowly.
    """

    def __init__(self) -> None:
        self._window: deque[bool] = deque(maxlen=DEAD_WINDOW)

    def alive(self) -> None:
        """Count a frame that was decoded."""
        self._window.append(False)

    def dead(self, why: str) -> None:
        """Count one that was not. Raises TooManyDead."""
        self._window.append(True)
        dead = sum(self._window)
        if dead > DEAD_FREE + len(self._window) * DEAD_SHARE_MAX_PERCENT // 100:
            raise TooManyDead(
                f"{dead} of the last {len(self._window)} reading frames cannot be decoded "
                f"(the last one: {why}): the worker stops before it empties {TOPIC} into its "
                "dead letters. Check which version of ingest or metering was deployed last"
            )
