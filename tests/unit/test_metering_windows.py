"""Windows in blocks: what a list of windows a meter would hold, packed as rows have them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.frames import ABSENT_REGISTER, RATES
from services.metering.domain.rows import WINDOWS_MAX, packed_windows
from services.metering.domain.windows import WINDOW_AGE_MS_MAX, Window, Windows, kept_windows

METERS = 40
NO_RATES = (ABSENT_REGISTER,) * (2 * RATES)

steps = st.tuples(
    st.sets(st.integers(0, METERS - 1), min_size=1),
    st.integers(1, 5),
    st.sampled_from([1, 1_000, WINDOW_AGE_MS_MAX // 3, WINDOW_AGE_MS_MAX]),
)
"""(which meters have one more window, how wide it is, how long after the one before it ends)."""


@given(st.lists(steps, max_size=20), st.sets(st.integers(0, METERS - 1)))
def test_they_are_those_of_a_list_of_each_meter(
    history: list[tuple[set[int], int, int]], forgotten: set[int]
) -> None:
    windows, said = Windows(), np.zeros(METERS, np.uint8)
    model: dict[int, list[Window]] = {meter: [] for meter in range(METERS)}
    now_ms = 0
    for number, (meters, width_ms, later_ms) in enumerate(history):
        now_ms += later_ms + width_ms
        slots = np.array(sorted(meters))
        newest = np.array([(now_ms - width_ms, meter, now_ms, meter + 1) for meter in slots])
        said[slots] = windows.append(slots, said[slots], newest)
        for meter, four in zip(slots.tolist(), newest.tolist(), strict=True):
            model[meter] = kept_windows([*model[meter], (*four, *NO_RATES)])
        if number == 10:
            for meter in forgotten:
                model[meter] = model[meter][:1]
                said[meter] = windows.put(meter, model[meter])
        check(windows, said, model)
    packed = [windows.packed(meter, count) for meter, count in enumerate(said.tolist())]
    check(Windows.of_all(said, packed), said, model)


def check(windows: Windows, said: np.ndarray, model: dict[int, list[Window]]) -> None:
    """Fail where a meter has other windows than in the model."""
    assert {meter: windows.of(meter, count) for meter, count in enumerate(said.tolist())} == model
    flat = windows.flat(np.arange(METERS), said)
    assert flat.tobytes() == b"".join(packed_windows(of)[1] for of in model.values())


def test_a_fifth_lets_the_narrowest_go_the_earliest_of_equals() -> None:
    windows, slots = Windows(), np.array([7])
    said = np.zeros(1, np.uint8)
    for begin, end in [(0, 9), (10, 12), (20, 29), (30, 32), (40, 49)]:
        said = windows.append(slots, said, np.array([[begin, 0, end, 1]]))
    assert said.tolist() == [WINDOWS_MAX]
    assert [window[0] for window in windows.of(7, WINDOWS_MAX)] == [0, 20, 30, 40]


def test_a_block_that_is_let_go_is_used_again() -> None:
    windows, none = Windows(), np.zeros(1, np.uint8)
    blocks = len(windows._blocks)
    for meter in range(3 * blocks):
        windows.append(np.array([meter]), none, np.array([[meter, 0, meter + 9, 1]]))
        assert windows.of(meter, 1) == [(meter, 0, meter + 9, 1, *NO_RATES)]
        assert windows.put(meter, []) == 0
        assert windows.of(meter, 0) == []
    assert len(windows._blocks) == blocks


def test_windows_with_registers_of_rates_are_kept_beside_the_others() -> None:
    windows, rates = Windows(), tuple(range(2 * RATES))
    plain: Window = (0, 0, 9, 1, *NO_RATES)
    said = windows.put(3, [plain, (10, 1, 19, 2, *rates)])
    assert windows.of(3, said) == [plain, (10, 1, 19, 2, *rates)]
    said = windows.put(3, [plain])
    assert (said, windows.of(3, said)) == (1, [plain])
