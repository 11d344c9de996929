"""Goal: who takes the evidence away too is found out, and never is a wrong event named for it.

Method: the told book of test_vending_tampering; what is tampered with are links, checkpoints, keys
and places where nobody looks, alone or together with an event.
"""

import sqlite3
from uuid import uuid4

import pytest
from hypothesis import given

from services.vending import commands
from services.vending.adapters.keys import PublicKeys
from services.vending.application.verifying import Fault, first_of
from services.vending.domain import chain
from services.vending.domain.event_store import StoredEvent, StreamId
from tests.property.metering_runs import examples
from tests.property.test_vending_tampering import (
    ALTERED,
    book,
    compared,
    identity,
    named,
    picked,
    rewrite,
    tampered,
    told_event,
    verified,
)

STRIP = "UPDATE checkpoint SET key_id = '', signature = x'' WHERE position BETWEEN ? AND ?"


@given(picked)
@examples(40)
def test_checkpoints_that_were_written_anew_without_a_signature_prove_nothing(pick: int) -> None:
    """The ones behind them are still signed: the span begins where the last signature holds."""
    event = told_event(pick)
    last = book().told
    with tampered() as (path, connection):
        (root,) = connection.execute(
            "SELECT root FROM checkpoint WHERE position = ?", (last,)
        ).fetchone()
        rewrite(connection, event.position)
        connection.execute(STRIP, (0, last - 1))
        connection.execute("UPDATE checkpoint SET root = ? WHERE position = ?", (root, last))
        fault = verified(path).fault
    assert fault is not None
    assert fault.position <= event.position <= fault.until, fault


@given(picked, picked)
@examples(60)
def test_links_that_were_removed_are_named_by_the_first_event_without(one: int, other: int) -> None:
    first, last = sorted((told_event(one), told_event(other)), key=lambda e: e.position)
    with tampered() as (path, connection):
        connection.execute(
            "DELETE FROM link WHERE position BETWEEN ? AND ?", (first.position, last.position)
        )
        for keys in (book().keys(), PublicKeys([])):
            verdict = verified(path, keys)
            if first.position == 1 and last.position < book().checkpoints[0]:
                assert verdict.fault is None, "as where links and checkpoints began later"
                continue
            assert named(verdict) == identity(first)
            assert verdict.fault is not None
            assert "link is gone" in verdict.fault.what


def test_a_book_of_which_an_earlier_release_told_the_beginning_is_in_order() -> None:
    until = book().checkpoints[1]
    with tampered() as (path, connection):
        connection.execute("DELETE FROM link WHERE position <= ?", (until,))
        assert verified(path).fault is not None
        connection.execute("UPDATE checkpoint SET written_at_ms = 0 WHERE position <= ?", (until,))
        assert verified(path, PublicKeys([])).fault is None


def test_a_book_whose_links_and_checkpoints_were_lost_and_begun_anew_is_in_order() -> None:
    """As that of a server whose index was made anew."""
    until = book().checkpoints[1]
    with tampered() as (path, connection):
        for table in ("link", "checkpoint"):
            connection.execute(f"DELETE FROM {table} WHERE position <= ?", (until,))
        verdict = verified(path)
    assert verdict.fault is None
    assert verdict.linked == book().told - until


def test_of_a_book_in_a_raised_epoch_the_beginning_that_was_told_again_needs_no_links() -> None:
    with tampered() as (path, connection):
        connection.execute("DELETE FROM link WHERE position <= ?", (book().checkpoints[1],))
        connection.execute("UPDATE checkpoint SET book_epoch = 2")
        assert verified(path, PublicKeys([])).fault is None
        connection.execute("DELETE FROM link WHERE position >= ?", (book().checkpoints[-2],))
        fault = verified(path, PublicKeys([])).fault
    assert fault is not None
    assert fault.position == book().checkpoints[-2]


def test_where_keys_are_set_no_checkpoint_at_all_is_a_fault() -> None:
    with tampered() as (path, connection):
        connection.execute("DELETE FROM checkpoint")
        fault = verified(path).fault
        assert verified(path, PublicKeys([])).fault is None
    assert fault is not None
    assert "no checkpoint vouches for them" in fault.what


@given(picked)
@examples(20)
def test_an_event_hidden_before_the_first_position_is_named(pick: int) -> None:
    """Who reads its stream would see it; who follows the book begins behind it."""
    after = last_of(told_event(pick).stream)
    with tampered() as (path, connection):
        forged = forge(connection, after, -7)
        verdict = verified(path)
    assert named(verdict) == (-7, forged.stream, forged.revision, forged.type)


def last_of(stream: StreamId) -> StoredEvent:
    return [event for event in book().events if event.stream == stream][-1]


def forge(connection: sqlite3.Connection, after: StoredEvent, position: int) -> StoredEvent:
    """Insert an event that continues the chain of its stream."""
    said = chain.read_meta(after.meta)
    meta = chain.meta_of(said.schema, chain.stored_hash(after), said.origin)
    event = StoredEvent(
        position, after.stream, after.revision + 1, uuid4(), after.type, after.data, meta
    )
    connection.execute(
        "INSERT INTO event(position, stream, revision, id, type, meta, data) "
        "SELECT ?, id, ?, ?, ?, ?, ? FROM stream WHERE name = ?",
        (position, event.revision, event.id.bytes, event.type, meta, event.data, event.stream),
    )
    return event


BEYOND_READING = {
    "an id that is none": "UPDATE event SET id = x'00' WHERE position = ?",
    "a link's id that is none": "UPDATE link SET event_id = x'00' WHERE position = ?",
    "a type that is no text": "UPDATE event SET type = CAST(x'ff' AS TEXT) WHERE position = ?",
    "a link's stream that is no text": (
        "UPDATE link SET stream = CAST(x'ff' AS TEXT) WHERE position = ?"
    ),
    "metadata that are none": "UPDATE event SET meta = x'5b5d' WHERE position = ?",
    "no data": "UPDATE event SET data = x'' WHERE position = ?",
    "a link's hash": "UPDATE link SET hash = x'00' WHERE position = ?",
}


@pytest.mark.parametrize("how", sorted(BEYOND_READING))
def test_what_was_altered_beyond_reading_is_named_all_the_same(how: str) -> None:
    event = told_event(12)
    with tampered() as (path, connection):
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute(BEYOND_READING[how], (event.position,))
        verdict = verified(path)
    assert verdict.fault is not None
    assert verdict.fault.position == verdict.fault.until == event.position


@pytest.mark.parametrize("name", ["site-S1", "account-A1"])
def test_a_stream_under_another_name_is_named_by_its_first_event(name: str) -> None:
    with tampered() as (path, connection):
        connection.execute("UPDATE stream SET name = 'account-A9' WHERE name = ?", (name,))
        verdict = verified(path)
    first = next(event for event in book().events if event.stream == name)
    assert named(verdict) == identity(first)


def test_the_first_is_named_also_where_ledger_alone_knows_of_it() -> None:
    """An event is rewritten with its links; one behind it, of another stream, is just altered."""
    first = next(e for e in book().events if e.position > 12 and e.stream == "account-A1")
    behind = next(e for e in book().events[first.position :] if e.stream == "account-A2")
    with tampered() as (path, connection):
        rewrite(connection, first.position)
        connection.execute(ALTERED["data"], (behind.position,))
        here = verified(path).fault
        _, differs = compared(path)
    found = first_of(here, differs)
    assert found is not None
    assert (found.position, found.until) == (first.position, first.position)


def test_of_two_findings_the_first_counts() -> None:
    def at(position: int, until: int) -> Fault:
        return Fault(position, until, StreamId("s"), 0, "t", f"{position} {until}")

    assert first_of(None, None) is None
    assert first_of(at(3, 3), None) == first_of(None, at(3, 3)) == at(3, 3)
    assert first_of(at(3, 3), at(4, 4)) == at(3, 3)
    assert first_of(at(5, 5), at(4, 4)) == at(4, 4)
    assert first_of(at(1, 9), at(4, 4)) == at(4, 4)
    assert first_of(at(1, 9), at(12, 12)) == at(1, 9)
    assert commands.FAULT_FOUND


def test_of_a_rewritten_end_without_its_checkpoints_ledger_names_the_first_event() -> None:
    *_, last_but_one, last = book().checkpoints
    event = book().events[last_but_one]
    with tampered() as (path, connection):
        rewrite(connection, event.position)
        connection.execute("DELETE FROM checkpoint WHERE position = ?", (last,))
        verdict = verified(path)
        _, differs = compared(path)
    assert verdict.fault is None, "nothing in the store can tell"
    assert verdict.signed is not None
    assert verdict.root.count - verdict.signed.root.count == len(book().events) - last_but_one
    assert differs is not None
    assert (differs.position, differs.until) == (event.position, event.position)
