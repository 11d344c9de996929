"""Goal: the tables depend on what happened, not on when or how often reporting heard of it.

Method: Hypothesis interleaves the partitions of two accounts' story in any way (only the order
within a partition is given), lets writers repeat themselves as after a crash, delivers records
again as after a lost commit, cuts the stream into batches, and compacts the compacted topics; the
standing rows must always be those of the story told once in order.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.runtime.topics import catalogue
from services.reporting.adapters.log import rows_of
from services.reporting.domain.rows import Row, Table, newest
from tests.unit.reporting_records import Sent, Story, consumed

STORIES = (Story("a", 3), Story("b", 3), Story("c", 5))
TOLD = [sent for story in STORIES for sent in story.all()]

Standing = dict[Table, Sequence[Row]]


def partitions(records: Iterable[Any]) -> list[list[Any]]:
    found: dict[tuple[str, int], list[Any]] = {}
    for record in records:
        found.setdefault((record.topic, record.partition), []).append(record)
    return list(found.values())


def applied(standing: Standing, records: Iterable[Any]) -> Standing:
    """Write records as the database does: what stands, and the new rows, by the rule of a table."""
    before = [row for rows in standing.values() for row in rows]
    return newest([*before, *(row for record in records for row in rows_of(record))])


def facts(standing: Standing) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows without offsets of their topic, which a writer's repeat moves on."""
    return {
        table.name: sorted(
            tuple(
                repr(value)
                for name, value in zip(table.columns, row, strict=True)
                if name != "topic_offset"
            )
            for row in rows
        )
        for table, rows in standing.items()
    }


ONCE = applied({}, consumed(TOLD))


@st.composite
def repeated_by_their_writers(draw: st.DrawFn) -> list[Sent]:
    """Each partition's last records once more, as a writer that starts again sends them."""
    sent = list(TOLD)
    by_partition: dict[tuple[str, int], list[Sent]] = {}
    for one in TOLD:
        by_partition.setdefault((one.topic, one.partition), []).append(one)
    for told in by_partition.values():
        again = draw(st.integers(0, len(told)))
        sent.extend(told[len(told) - again :])
    return sent


@st.composite
def deliveries(draw: st.DrawFn, records: Sequence[Any]) -> list[list[Any]]:
    """Batches of all records in an order that keeps each partition's, some delivered again."""
    waiting = partitions(records)
    at = [0] * len(waiting)
    stream = []
    randomly = draw(st.randoms(use_true_random=False))
    rewinds = draw(st.integers(0, 5))
    while open_ones := [n for n, queue in enumerate(waiting) if at[n] < len(queue)]:
        n = randomly.choice(open_ones)
        stream.append(waiting[n][at[n]])
        at[n] += 1
        if rewinds and randomly.random() < 0.1:
            rewinds -= 1
            at[n] = randomly.randrange(at[n] + 1)
    cuts = sorted(randomly.randrange(len(stream)) for _ in range(4))
    return [stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_partitions_and_any_repeat_gives_the_same_rows(data: st.DataObject) -> None:
    sent = data.draw(repeated_by_their_writers())
    standing: Standing = {}
    for batch in data.draw(deliveries(consumed(sent))):
        standing = applied(standing, batch)
    assert facts(standing) == facts(ONCE)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_rebuild_from_compacted_topics_gives_identical_rows(data: st.DataObject) -> None:
    records = consumed(data.draw(repeated_by_their_writers()))
    live: Standing = {}
    for batch in data.draw(deliveries(records)):
        live = applied(live, batch)
    last = {(record.topic, record.partition, record.key): record for record in records}
    left = [
        record
        for record in records
        if catalogue().topics[record.topic].config["cleanup.policy"] == "delete"
        or last[record.topic, record.partition, record.key] is record
        or data.draw(st.booleans())
    ]
    assert len(left) <= len(records)
    assert applied({}, left) == live
