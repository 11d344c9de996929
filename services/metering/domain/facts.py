"""Tables made from what the book says: names as numbers, policies by slot."""

from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.kernel.units import INT64_MAX
from services.common.policies.rules import NONE, read
from services.common.policies.windows import first_no_cut_ms
from services.metering.domain.rows import Fact

Array = npt.NDArray[Any]

POLICY = np.dtype(
    [
        ("present", "?"),
        ("version", "<i8"),
        ("alarm_1_nano", "<i8"),
        ("alarm_2_nano", "<i8"),
        # At or below it an alarm that stands is not cleared: the policy's hysteresis.
        ("alarm_1_clear_nano", "<i8"),
        ("alarm_2_clear_nano", "<i8"),
        ("floor_nano", "<i8"),  # -overdraft: at or below it, cut
        ("warned_nano", "<i8"),  # above it nothing is due: the highest of the three
        ("restore_nano", "<i8"),
        ("lease_ms", "<i8"),
        ("max_evidence_age_ms", "<i8"),
        ("unusual_factor", "<i8"),  # 0: it does not ask
        ("idle_days", "<i8"),  # 0: it does not ask
    ]
)


_FEW = 32


def are_distinct(slots: Array) -> bool:
    """Say whether no number comes twice."""
    if len(slots) <= _FEW:
        return len(set(slots.tolist())) == len(slots)
    ordered = np.sort(slots)
    return not (ordered[1:] == ordered[:-1]).any()


def grown(array: Array, count: int) -> Array:
    """Return `array` with room for `count` entries, doubled where it must grow.

    What is not used yet takes no memory: the system gives zeros when they are written first.
    """
    if count <= len(array):
        return array
    larger = np.zeros((max(count, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


GROUP_NAMES = 5
"""What a charge is named by: tariff, policy, legal entity, currency, commodity."""


class Names:
    """Groups of names, those of a charge: as numbers inside the arrays, and nothing outlives a run.

    Group 0 is of no names.
    """

    def __init__(self) -> None:
        self._numbers = {"": 0}
        self._names = [""]
        self._groups: dict[tuple[str, ...], int] = {}
        self._of_groups = np.zeros((16, GROUP_NAMES), np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def group(self, names: tuple[str, ...]) -> int:
        """Return the number of a group of GROUP_NAMES names."""
        found = self._groups.get(names)
        if found is None:
            found = self._groups[names] = len(self._groups) + 1
            self._of_groups = grown(self._of_groups, found + 1)
            self._of_groups[found] = [self._number(name) for name in names]
        return found

    def _number(self, name: str) -> int:
        found = self._numbers.setdefault(name, len(self._names))
        if found == len(self._names):
            self._names.append(name)
        return found

    def dictionary(self, groups: Array) -> tuple[tuple[str, ...], Array]:
        """Return (names in order of first use, those of each group as indexes into them)."""
        if (groups == groups[0]).all():  # of one tariff, one policy: mostly
            groups = groups[:1]
        numbers = self._of_groups[groups]
        flat = numbers.ravel()
        ordinals = np.arange(len(flat))
        first = np.empty(len(self._names), np.int64)
        first[flat[::-1]] = ordinals[::-1]  # of equal indexes the last written stands: the first
        used = flat[first[flat] == ordinals]
        index = np.empty(len(self._names), np.uint16)
        index[used] = np.arange(len(used))
        return tuple(self._names[number] for number in used.tolist()), index[numbers]


class Policies:
    """The newest version of each policy, by slot. Slot 0 is no policy.

    `rows`: dtype POLICY; `rules`: what must hold besides before arrears cut.
    """

    def __init__(self) -> None:
        self._slots = {"": 0}
        self.rows = np.zeros(4, POLICY)
        self.rules = [NONE]
        self.ask_habits = False
        """Whether any of them asks what its meters usually take, or whether they take anything."""
        self._no_cut: dict[int, tuple[int, bool]] = {}

    def slot(self, policy_id: str) -> int:
        """Return the slot of a policy, known or yet to come."""
        slot = self._slots.setdefault(policy_id, len(self._slots))
        if slot == len(self.rules):
            self.rules.append(NONE)
        self.rows = grown(self.rows, slot + 1)
        return slot

    def is_no_cut(self, slot: int, at_ms: int) -> bool:
        """Say whether an instant lies in a window of a policy; accounts of a frame ask for one."""
        asked_ms, answer = self._no_cut.get(slot, (None, False))
        if asked_ms != at_ms:
            answer = first_no_cut_ms(self.rules[slot], at_ms, at_ms + 1) is not None
            self._no_cut[slot] = at_ms, answer
        return answer

    def put(self, fact: Fact) -> int:
        """Set a policy; return its slot."""
        slot, rules = self.slot(fact["policy_id"]), read(fact["rules"])
        alarms_nano = (fact["alarm_1_nano"], fact["alarm_2_nano"])
        self.rules[slot] = rules
        self.ask_habits = any(each.unusual_factor or each.idle_days for each in self.rules)
        self._no_cut.pop(slot, None)
        self.rows[slot] = (
            True,
            fact["version"],
            *alarms_nano,
            *(min(nano + rules.hysteresis_nano, INT64_MAX) for nano in alarms_nano),
            -fact["overdraft_nano"],
            max(*alarms_nano, -fact["overdraft_nano"]),
            fact["restore_nano"],
            fact["lease_ms"],
            fact["max_evidence_age_ms"],
            rules.unusual_factor or 0,
            rules.idle_days or 0,
        )
        return slot
