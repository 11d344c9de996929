"""A site's budget of relay orders a minute, over every sliding minute, for batches.

A batch asks a relay to move no faster than control may cut: else the orders would pile up there,
and nobody could stop them any more.
"""

from collections.abc import Iterable

from services.common.kernel.values import value_class

MINUTE_MS = 60_000


@value_class
class Asked:
    """So many relays of a site were asked to move, the last of them at `at_ms`."""

    site_id: str
    at_ms: int
    count: int


def lately(asked: Iterable[Asked], now_ms: int) -> tuple[Asked, ...]:
    """Return what counts in the minute that ends now."""
    return tuple(each for each in asked if each.at_ms > now_ms - MINUTE_MS)


def left(asked: Iterable[Asked], site_id: str, budget_count: int, now_ms: int) -> int:
    """Return how many relays of a site may be asked now."""
    used = sum(each.count for each in lately(asked, now_ms) if each.site_id == site_id)
    return max(0, budget_count - used)


def next_at_ms(asked: Iterable[Asked], site_id: str, budget_count: int, now_ms: int) -> int:
    """Return when the next relay of a site may be asked: `now_ms` where it may be now."""
    of_site = sorted(
        (each for each in lately(asked, now_ms) if each.site_id == site_id),
        key=lambda each: each.at_ms,
    )
    used = sum(each.count for each in of_site)
    for each in of_site:
        if used < budget_count:
            break
        used -= each.count
        now_ms = each.at_ms + MINUTE_MS
    return now_ms
