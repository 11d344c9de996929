"""Goal: a preview of a policy says of each account what metering makes of it at once.

Method: metering absorbs a history, and then a version of one of its policies with other thresholds;
what the preview makes of balances and levels before it must be the levels after it.
"""

from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from services.common.policies.levels import LEVEL_NAMES
from services.common.policies.rules import read
from services.metering.domain.messages import LogRecord
from services.metering.domain.shard import ShardState
from services.reporting.domain.standing import Standing, Thresholds, changes
from tests.property.metering_histories import THRESHOLDS_NANO, arrears, merged, routines
from tests.property.metering_runs import examples, fresh_run

CUT = LEVEL_NAMES[3]


def thresholds(fact: dict[str, Any]) -> Thresholds:
    return Thresholds(
        fact["alarm_1_nano"],
        fact["alarm_2_nano"],
        -fact["overdraft_nano"],
        fact["restore_nano"],
        read(fact["rules"]).hysteresis_nano,
    )


def standings(state: ShardState, policy_id: str) -> list[Standing]:
    """Return how those accounts stand that a policy judges."""
    found = []
    for slot in range(state.account_count):
        account, fact = state.accounts[slot], state.account_fact(slot)
        is_judged = account["known"] and not account["closed"] and account["meters"] > 0
        if fact is None or not is_judged or fact["policy_id"] != policy_id:
            continue
        available = account["credited_nano"] - account["charged_nano"] - account["held_nano"]
        level = LEVEL_NAMES[account["level"]]
        orders = (fact["keep_power_until_ms"], fact["promise_until_ms"])
        found.append(Standing(fact["account_id"], "S", int(available), level, *orders))
    return found


@examples(200)
@given(
    st.one_of(merged(), routines(), arrears()), st.integers(0, len(THRESHOLDS_NANO) - 1), st.data()
)
def test_levels_change_at_once_as_the_preview_says(
    records: list[LogRecord], to: int, data: st.DataObject
) -> None:
    told = [record.value for record in records if record.subject == "policy-fact"]
    facts: dict[str, Any] = {}
    for fact in told:
        assert isinstance(fact, dict)
        stands = facts.get(fact["policy_id"])
        versions = [(f["book_epoch"], f["revision"]) for f in (fact, stands) if f]
        if versions[0] == max(versions):
            facts[fact["policy_id"]] = fact
    if not facts:
        event("no policy")
        return
    now = facts[data.draw(st.sampled_from(sorted(facts)))]
    names = ("alarm_1_nano", "alarm_2_nano", "overdraft_nano", "restore_nano")
    then = now | dict(zip(names, THRESHOLDS_NANO[to], strict=True))
    then |= {"version": now["version"] + 1, "revision": now["revision"] + 1}
    state, _ = fresh_run(records)
    before = standings(state, now["policy_id"])
    last = records[-1]
    after_records = [*records, LogRecord(last.offset + 1, last.timestamp_ms, "policy-fact", then)]
    after_state, _ = fresh_run(after_records)
    after = {s.account_id: s.level for s in standings(after_state, now["policy_id"])}
    if not before:
        event("nobody under it")
        return
    foreseen = {s.account_id: s.level for s in before}
    for change in changes(before, thresholds(now), thresholds(then), state.now_ms):
        foreseen[change.standing.account_id] = change.level_then
        event(f"{change.standing.level} to {change.level_then}")
        assert change.level_then != CUT or change.standing.level == CUT, "a policy cuts nobody"
    assert foreseen == after
