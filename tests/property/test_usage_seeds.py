"""Goal: what vending posts of an account's usage is enough to seed metering's row anew.

Method: metering absorbs a history; somewhere in it vending asks about an account. The echo becomes
an event, as the store has it. Then the account's row is lost and the one in the event takes its
place: from there on the shard must send, and keep, what it would have without the loss.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from services.common.kernel.ids import column_key, name_uuid
from services.common.runtime import codec
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import Absorbed, LogRecord, Output, Row
from services.metering.domain.rows import account_row_key
from services.metering.domain.seeding import (
    Posted,
    Seeds,
    ToldFact,
    entity_of,
    header_offset,
    known_at,
    seeded,
)
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import rows_of, shard_of_rows
from services.vending.adapters import bus
from services.vending.domain import account, account_commands
from services.vending.domain.decisions import Accepted, Answers
from services.vending.domain.events import event_from
from services.vending.domain.events.usage import UsagePosted
from tests.property.metering_histories import ACCOUNTS, SHARD, histories, merged, shapes
from tests.property.metering_runs import examples, fresh_run, outputs_of, plain, run, totals

_logs = st.one_of(histories(), shapes(), merged())
_parts = st.integers(1, 99)
_asked = st.sampled_from(ACCOUNTS)


def asking(name: str, at_ms: int) -> LogRecord:
    ask = {"account_id": name, "account_key": column_key("account", name), "asked_at_ms": 1}
    return LogRecord(0, at_ms, "usage-ask", {**ask, "ask_id": str(name_uuid("ask", name))})


def seed_of(event: UsagePosted, book: dict[str, list[dict[str, Any]]]) -> Posted:
    key = column_key("account", event.account_id)
    version = (event.book_epoch, event.account_revision)
    (fact,) = [each for each in book[f"accounts/{key}"] if version_of(each) == version]
    return Posted(key, event.log_offset, event.row, fact)


def posted(echo: Output) -> UsagePosted:
    event = posted_of(echo)
    assume(event)  # else nothing was ever charged or credited
    assert event is not None
    return event


def posted_of(echo: Output) -> UsagePosted | None:
    """Return what vending stores of an echo, read again from its bytes."""
    value = codec.decode(codec.schema_header("echo"), codec.encode("echo", echo.record))
    of = (value["currency"], 2, 9, value["legal_entity"], value["commodity"], "T", "P")
    key = column_key("account", value["account_id"])
    state = account.Account(Answers(0), value["account_id"], key, SHARD, "S", None, *of)
    decision = account_commands.decide(state, bus.usage_told(value, 1))
    assert isinstance(decision, Accepted)
    if not decision.events:
        return None
    (event,) = decision.events
    stored = codec.encode(event.SUBJECT, event.record())
    record = codec.decode(codec.schema_header(event.SUBJECT), stored)
    read = event_from(event.SUBJECT, record, event.origin)
    assert isinstance(read, UsagePosted)
    assert read == event
    return read


@examples(150)
@given(_logs, _parts, _asked)
def test_a_row_seeded_from_what_was_posted_charges_on_like_the_one_that_was_lost(
    records: list[LogRecord], percent: int, name: str
) -> None:
    at = len(records) * percent // 100
    before, after = records[:at], [replace(each, offset=each.offset + 1) for each in records[at:]]
    assume(before)
    key = column_key("account", name)
    ask = {"account_id": name, "account_key": key, "asked_at_ms": 1}
    ask_id = str(name_uuid("ask", name))
    offset, now_ms = before[-1].offset + 1, before[-1].timestamp_ms
    undisturbed, _ = fresh_run(before)
    asked = absorb(undisturbed, LogRecord(offset, now_ms, "usage-ask", {**ask, "ask_id": ask_id}))
    assume(asked.outputs)  # metering knows the account
    event = posted(asked.outputs[0])

    facts, accounts, header = rows_of(undisturbed)
    left = [row for row in accounts if row.key != account_row_key(key)]
    seed = Row(account_row_key(key), event.row)
    seeded = shard_of_rows(SHARD, [*facts, *left, seed, header])
    assert totals(seeded) == totals(undisturbed)
    assert outputs_of(run(seeded, after)) == outputs_of(run(undisturbed, after))
    assert totals(seeded) == totals(undisturbed)


@examples(150)
@given(_logs)
def test_the_row_of_every_echo_is_the_account_s_after_its_record(records: list[LogRecord]) -> None:
    state = ShardState.empty(SHARD)
    for record in records:
        for output in absorb(state, record).outputs:
            if output.topic == "echoes":
                key = column_key("account", output.record["account_id"])
                (row,) = [row for row in rows_of(state)[1] if row.key == account_row_key(key)]
                assert output.record["row"] == row.value


def history_of(told: list[ToldFact]) -> dict[str, list[dict[str, Any]]]:
    """Return what the book knows of each entity: all versions of its fact, in their order."""
    known: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in told:
        if all(version_of(each.fact) > version_of(fact) for fact in known[each.entity]):
            known[each.entity].append(each.fact)
    return known


def version_of(fact: dict[str, Any]) -> tuple[int, int]:
    return fact["book_epoch"], fact["revision"]


def said_of(log: list[LogRecord], absorbed: list[Absorbed], after: dict[str, int]) -> list[Any]:
    """Return what is said of accounts, each from an offset on; houses cost nothing and are out."""
    names = {column_key("account", name): name for name in after}
    said: list[Any] = []
    for at, done in zip(log, absorbed, strict=True):
        for output in done.outputs:
            record = plain(output)["record"]
            of: list[Any] = [(record.get("account_id"), output.event_id, record)]
            if output.subject == "charge-frame":
                of = [(names.get(row["account_key"]), at.offset, row) for row in record["rows"]]
            said += [each for each in of if at.offset > after.get(each[0], at.offset)]
    return said


@examples(60)
@given(_logs, st.tuples(*[_parts] * len(ACCOUNTS)), st.booleans())
def test_a_shard_seeded_from_what_was_posted_goes_on_like_the_one_that_was_lost(
    records: list[LogRecord], percents: tuple[int, ...], is_short: bool
) -> None:
    """`is_short`: the log does not tell any more what was told before its header."""
    assume(records)
    asks = sorted(zip(percents, ACCOUNTS, strict=True), reverse=True)
    for percent, name in asks:
        at = len(records) * percent // 100
        records = [*records[:at], asking(name, records[max(at - 1, 0)].timestamp_ms), *records[at:]]
    first = 100
    log = [replace(record, offset=first + number) for number, record in enumerate(records)]
    facts = [
        ToldFact(each.offset, entity_of(each.subject, each.value), each.value)
        for each in log
        if isinstance(each.value, dict) and each.subject.endswith("-fact")
    ]
    book = history_of(facts)
    state = ShardState.empty(SHARD)
    undisturbed = run(state, log)
    echoes = [each for each in outputs_of(undisturbed) if each.record.get("ask_id")]
    posts = [seed_of(event, book) for echo in echoes if (event := posted_of(echo))]
    keys = {post.account_key for post in posts}
    ours = {column_key("account", name) for name in ACCOUNTS}
    opened = {
        fact.fact["account_key"]: fact.offset
        for fact in reversed(facts)
        if fact.fact.get("account_key") in ours - keys
    }
    seeds = Seeds(SHARD, posts, book, dict.fromkeys(opened, 0))
    assume(posts or opened)
    header = header_offset(seeds, first, opened.values())
    told = facts
    if is_short:
        known = known_at({}, told, header)
        later = [each for each in told if each.offset > header and each.entity in known]
        assume(all(version_of(each.fact) > version_of(known[each.entity]) for each in later))
        told = [each for each in told if each.offset > header]
    now_ms = max([each.timestamp_ms for each in log if each.offset <= header], default=0)

    fact_rows, account_rows, end = seeded(seeds, told, header, now_ms)

    again = shard_of_rows(SHARD, [*fact_rows, *account_rows, end])
    rest = [each for each in log if each.offset > header]
    after = dict.fromkeys(ACCOUNTS, header) | {
        name: post.log_offset
        for name in ACCOUNTS
        for post in posts
        if post.account_key == column_key("account", name)
    }
    assert said_of(rest, run(again, rest), after) == said_of(log, undisturbed, after)
    assert {key: said for key, said in totals(again).items() if key in ours} == {
        key: said for key, said in totals(state).items() if key in ours
    }
