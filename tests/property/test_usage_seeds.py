"""Goal: what vending posts of an account's usage is enough to seed metering's row anew.

Method: metering absorbs a history; somewhere in it vending asks about an account. The echo becomes
an event, as the store has it. Then the account's row is lost and the one in the event takes its
place: from there on the shard must send, and keep, what it would have without the loss.
"""

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from services.common.kernel.ids import column_key, name_uuid
from services.common.runtime import codec
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import LogRecord, Output, Row
from services.metering.domain.rows import account_row_key
from services.metering.domain.shard import ShardState
from services.vending.adapters import bus
from services.vending.domain import account
from services.vending.domain.decisions import Accepted, Answers
from services.vending.domain.events import UsagePosted, event_from
from tests.property.metering_histories import ACCOUNTS, SHARD, histories, merged, shapes
from tests.property.metering_runs import examples, fresh_run, outputs_of, run, totals

_logs = st.one_of(histories(), shapes(), merged())
_parts = st.integers(1, 99)
_asked = st.sampled_from(ACCOUNTS)


def posted(echo: Output) -> UsagePosted:
    """Return what vending stores of an echo, read again from its bytes."""
    value = codec.decode(codec.schema_header("echo"), codec.encode("echo", echo.record))
    of = (value["currency"], 2, 9, value["legal_entity"], value["commodity"], "T", "P")
    key = column_key("account", value["account_id"])
    state = account.Account(Answers(0), value["account_id"], key, SHARD, "S", None, *of)
    decision = account.decide(state, bus.usage_told(value, 1))
    assert isinstance(decision, Accepted)
    assume(decision.events)  # nothing was ever charged or credited
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

    facts, accounts, header = undisturbed.rows()
    left = [row for row in accounts if row.key != account_row_key(key)]
    seed = Row(account_row_key(key), event.row)
    seeded = ShardState.from_rows(SHARD, [*facts, *left, seed, header])
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
                (row,) = [row for row in state.rows()[1] if row.key == account_row_key(key)]
                assert output.record["row"] == row.value
