"""How balances stand to the thresholds of a policy: the level that each asks for.

Metering judges by it, a frame at a time, and reporting previews by it: one rule.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NORMAL, ALARM_1, ALARM_2, CUT = range(4)
LEVEL_NAMES = ("normal", "alarm-1", "alarm-2", "cut")


def asked(available_nano: Array, levels: Array, policies: Array) -> tuple[Array, Array]:
    """Return (the level that counts for each account that is not cut, which are in arrears).

    `levels`: at which they are; `policies`: with the fields alarm_1_nano, alarm_2_nano, floor_nano
    (at or below it in arrears), alarm_1_clear_nano, alarm_2_clear_nano.
    """
    targets = np.where(available_nano <= policies["alarm_1_nano"], ALARM_1, NORMAL)
    targets[available_nano <= policies["alarm_2_nano"]] = ALARM_2
    targets[available_nano <= policies["floor_nano"]] = CUT
    # What stands is cleared only above its threshold and the policy's hysteresis.
    standing = np.where(available_nano <= policies["alarm_1_clear_nano"], ALARM_1, NORMAL)
    standing[available_nano <= policies["alarm_2_clear_nano"]] = ALARM_2
    counted = np.maximum(np.minimum(targets, ALARM_2), np.minimum(standing, levels))
    return counted, targets == CUT
