"""Goal: control's conclusions depend on its logs, not on their interleaving; budgets hold.

Method: Hypothesis shuffles topics against each other (never within one), and draws instants.
"""

from hypothesis import given
from hypothesis import strategies as st

from services.common.runtime.profiles import profiles
from services.control.domain.brake import WINDOW_MS, Brake
from services.control.domain.delivery import Limits
from services.control.domain.desk import Act, Desk
from services.control.domain.messages import (
    DeviceStatus,
    Gateway,
    Intent,
    Meter,
    RelayState,
    Site,
)

NOW_MS = 1_800_000_000_000
PARTITION = 0

Heard = Intent | RelayState | Site | Gateway | Meter | DeviceStatus

REGISTRY: list[Heard] = [
    Site("S1", cuts_held=False, cuts_per_minute=2, version=(1, 0)),
    Gateway("G1", "127.0.0.1:1502", (1, 0)),
    *(
        Meter(f"M{n}", "SN", "S1", "G1", "L1", n, "acrel-ddsy1352", 1, version=(1, 0))
        for n in range(3)
    ),
    Site("S1", cuts_held=True, cuts_per_minute=2, version=(1, 1)),
    Meter("M1", "SN", "S1", "G1", "L1", 1, "acrel-ddsy1352", 2, version=(1, 1)),
]
STATUSES: list[Heard] = [
    DeviceStatus("gateways/G1", "online", NOW_MS - 9_000),
    DeviceStatus("meters/M2", "offline", NOW_MS - 5_000),
]


def intent(meter: int, epoch: int, offset: int, wanted: str) -> Intent:
    lease_ms = NOW_MS + 60_000 if wanted == "open" else None
    decided_at_ms = NOW_MS - 1_000 + offset
    where, version = (f"M{meter}", "A1", "S1", "L1"), (epoch, offset)
    return Intent(*where, *version, wanted, "prepaid", lease_ms, decided_at_ms, "arrears")


intents = st.lists(
    st.builds(
        intent,
        st.integers(0, 2),
        st.integers(1, 2),
        st.integers(0, 900),
        st.sampled_from(["open", "closed"]),
    ),
    max_size=6,
    unique_by=lambda it: (it.meter_id, it.version),
)
states = st.lists(
    st.builds(
        RelayState,
        st.sampled_from(["M0", "M1", "M2"]),
        st.sampled_from(["open", "closed", "mixed"]),
        st.integers(NOW_MS - 2_000, NOW_MS),
    ),
    max_size=6,
    unique_by=lambda state: (state.meter_id, state.began_at_ms),
)


def concluded(records: list[Heard]) -> list[Act]:
    """Return what a worker does that reads the records and then begins."""
    desk = Desk(profiles(), Limits())
    desk.open(PARTITION)
    for record in records:
        if isinstance(record, Intent | RelayState):
            assert desk.hear(PARTITION, record, NOW_MS) == []
        else:
            assert desk.learn(record, NOW_MS) == []
    return sorted(desk.begin(PARTITION, NOW_MS), key=repr)


@given(intents, states, st.data())
def test_the_conclusion_does_not_depend_on_how_topics_interleave(
    of_intents: list[Intent], of_states: list[RelayState], data: st.DataObject
) -> None:
    topics: list[list[Heard]] = [list(REGISTRY), list(STATUSES), [*of_intents], [*of_states]]
    in_sequence = [record for topic in topics for record in topic]
    left = [list(topic) for topic in topics]
    interleaved: list[Heard] = []
    while any(left):
        interleaved.append(data.draw(st.sampled_from([t for t in left if t])).pop(0))
    assert concluded(interleaved) == concluded(in_sequence)


@given(intents, states, st.data())
def test_a_record_heard_twice_changes_nothing(
    of_intents: list[Intent], of_states: list[RelayState], data: st.DataObject
) -> None:
    once: list[Heard] = [*REGISTRY, *STATUSES, *of_intents, *of_states]
    repeated_count = data.draw(st.integers(0, len(once)))
    again = once[: len(once) - repeated_count] + once
    assert concluded(again) == concluded(once)


@given(st.lists(st.integers(0, 20_000), max_size=40), st.integers(0, 5))
def test_no_sliding_minute_holds_more_cuts_than_the_budget(
    pauses_ms: list[int], budget_count: int
) -> None:
    brake, now_ms, sent = Brake(), NOW_MS, list[int]()
    for number, pause_ms in enumerate(pauses_ms):
        now_ms += pause_ms
        free_at_ms = brake.free_at_ms("S1", budget_count, now_ms)
        in_window = [at_ms for at_ms in sent if at_ms > now_ms - WINDOW_MS]
        assert (free_at_ms == now_ms) == (len(in_window) < budget_count)
        if free_at_ms == now_ms:
            brake.count("S1", str(number), now_ms)
            sent.append(now_ms)
        elif budget_count:
            # It is free when it says, and not a moment sooner.
            still = [at_ms for at_ms in sent if at_ms > free_at_ms - WINDOW_MS]
            sooner = [at_ms for at_ms in sent if at_ms > free_at_ms - 1 - WINDOW_MS]
            assert len(still) < budget_count <= len(sooner)
