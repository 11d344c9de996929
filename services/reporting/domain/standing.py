"""Who would be in another state at once under other thresholds: a preview of a policy.

By metering's own rule of levels. A policy by itself cuts nobody: who has nothing left under it is
due to be cut by his next reading, unless one of its rules, or an order, keeps him from that.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from services.common.kernel.units import INT64_MAX
from services.common.kernel.values import value_class
from services.common.policies.levels import CUT, LEVEL_NAMES, asked
from services.common.policies.rules import Rules
from services.common.policies.windows import first_no_cut_ms

_ROW = np.dtype(
    [
        (f"{name}_nano", "<i8")
        for name in ("alarm_1", "alarm_2", "floor", "alarm_1_clear", "alarm_2_clear")
    ]
)


class Standing(NamedTuple):
    """An account as the read models have it: what is available, its level, orders about it."""

    account_id: str
    site_id: str
    available_nano: int
    level: str
    keep_power_until_ms: int | None
    promise_until_ms: int | None


@value_class
class Thresholds:
    """What a policy asks of a balance; `floor_nano`: at or below it nothing is left."""

    alarm_1_nano: int
    alarm_2_nano: int
    floor_nano: int
    restore_nano: int
    hysteresis_nano: int


@value_class
class Change:
    """An account that another policy puts into another state at once.

    `level_then`: at once; `due_now`, `due_then`: its next reading may cut it; `kept_by`: the order
    that keeps it on power, "" for none.
    """

    standing: Standing
    level_then: str
    due_now: bool
    due_then: bool
    kept_by: str


def changes(
    standings: Sequence[Standing], now: Thresholds, then: Thresholds, at_ms: int
) -> Iterator[Change]:
    """Yield the accounts whose state changes where thresholds `now` become those of `then`."""
    available = np.array([standing.available_nano for standing in standings], np.int64)
    levels = np.array([LEVEL_NAMES.index(each.level) for each in standings], np.int64)
    _, are_due_now = asked(available, levels, _rows(now, len(standings)))
    counted, are_due_then = asked(available, levels, _rows(then, len(standings)))
    for standing, level, is_due_now, is_due_then in zip(
        standings, counted.tolist(), are_due_now.tolist(), are_due_then.tolist(), strict=True
    ):
        kept_by = _kept_by(standing, at_ms)
        is_cut = standing.level == LEVEL_NAMES[CUT]
        stays_cut = is_cut and standing.available_nano < then.restore_nano and not kept_by
        level_then = LEVEL_NAMES[CUT if stays_cut else level]
        due_now, due_then = is_due_now and not is_cut, is_due_then and not stays_cut
        if (standing.level, due_now) != (level_then, due_then):
            yield Change(standing, level_then, due_now, due_then, kept_by)


def _rows(said: Thresholds, count: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    clear = [
        min(nano + said.hysteresis_nano, INT64_MAX)
        for nano in (said.alarm_1_nano, said.alarm_2_nano)
    ]
    row = (said.alarm_1_nano, said.alarm_2_nano, said.floor_nano, *clear)
    return np.array([row] * count, _ROW)


def _kept_by(standing: Standing, at_ms: int) -> str:
    orders = {
        "keep-power": standing.keep_power_until_ms,
        "promised": standing.promise_until_ms,
    }
    holds = (name for name, until_ms in orders.items() if until_ms is not None and at_ms < until_ms)
    return next(holds, "")


def also_asked(rules: Rules, at_ms: int) -> list[str]:
    """Return what else must hold before who is due is cut, beside the orders of a person.

    Since when nothing is left, whether a notice went out, how new and how good the next reading
    will be: the read models do not tell it account by account.
    """
    holds = {
        "grace": rules.grace_minutes > 0,
        "notice": rules.notice is not None,
        "qualities": True,
        "no-cut-window": first_no_cut_ms(rules, at_ms, at_ms + 1) is not None,
    }
    return [name for name, is_asked in holds.items() if is_asked]
