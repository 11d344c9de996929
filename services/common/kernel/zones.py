"""Civil time of a site: devices report naive local time; the platform keeps UTC milliseconds."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from services.common.kernel.errors import InvalidInput, shown
from services.common.kernel.reasons import Reason


def zone_named(name: str) -> ZoneInfo:
    """Return the IANA zone. Raises InvalidInput(INVALID_ARGUMENT) for an unknown one."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as unknown:  # OSError: a directory's name
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"there is no IANA time zone {shown(name)}; write e.g. Asia/Shanghai",
            field="zone",
        ) from unknown


def utc_ms(naive: datetime, zone: ZoneInfo, *, near_ms: int) -> int:
    """Return a device's naive local time as ms UTC.

    In the hour that a DST change repeats, the reading nearest to `near_ms` (the receive time) is
    meant: a device does not say which.
    """
    candidates = (
        int(naive.replace(tzinfo=zone, fold=fold).astimezone(UTC).timestamp()) * 1000
        for fold in (0, 1)
    )
    return min(candidates, key=lambda ms: abs(ms - near_ms))
