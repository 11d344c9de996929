"""What goes into `absorb` and what comes out of it. Pure values; the shell does the I/O."""

from collections import Counter
from dataclasses import field
from typing import Any, NamedTuple
from uuid import UUID

from services.common.kernel.frames import ReadingFrame
from services.common.kernel.values import value_class


@value_class
class LogRecord:
    """One record of a shard's log, decoded.

    `subject` names the kind: reading-frame (value: ReadingFrame), account-fact, meter-fact,
    site-fact, tariff-fact, policy-fact, wake (value: the Avro record). `timestamp_ms` is the
    broker's LogAppendTime.
    """

    offset: int
    timestamp_ms: int
    subject: str
    value: ReadingFrame | dict[str, Any]


@value_class
class Output:
    """One record to send.

    Topics partitioned by shard go to the shard's own partition; `route` (a site) decides it where
    the catalogue says so.
    """

    topic: str
    subject: str
    key: str
    record: dict[str, Any]
    event_id: UUID
    occurred_at_ms: int
    route: str | None = None


class Row(NamedTuple):
    """One row of the table: its key and its bytes, both for the changelog.

    A tuple, because a frame makes five hundred of them and a dataclass takes three times as long.
    """

    key: bytes
    value: bytes


@value_class
class Absorbed:
    """What one record did.

    Write `outputs` first; when they are acknowledged `fact_rows`, then `account_rows`, then
    `header`, each acknowledged before the next; records may be pipelined, at most
    `rows.PIPELINE_RECORDS_MAX` offsets beyond the last header that was acknowledged.
    `counts`: outcome → how many (for metrics only).
    """

    outputs: tuple[Output, ...]
    fact_rows: tuple[Row, ...]
    account_rows: tuple[Row, ...]
    header: Row
    counts: Counter[str] = field(default_factory=Counter)
