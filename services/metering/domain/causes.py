"""What a decision cites: the reading, the charge, the facts, and what it was judged by."""

from typing import Any
from uuid import UUID

from services.common.kernel.values import value_class
from services.metering.domain.rows import Fact


@value_class
class Cause:
    """What a decision cites.

    `meter`: the meter-fact of the meter whose reading or assignment it was. `charge`: an entry of
    dtype CHARGE. `reading`: an entry of dtype READING, of a usage charge or of one refused.
    `identity`: names the account where no account-fact does. `position`: in the frame.
    `was_silent`: the meter was, until that reading.
    """

    identity: Fact | None = None
    meter: Fact | None = None
    charge: Any = None
    reading: Any = None
    position: int = 0
    was_silent: bool = False


@value_class
class Evidence:
    """What a reading that is held, or stands out, is judged by.

    Of the reading (None: of none), of the meter as it stood (None: it has none), and by how much
    its register may have risen (None: unknown); of a silence, since when.
    """

    register_milli: int | None
    device_time_ms: int | None
    last_register_milli: int | None
    last_time_ms: int | None
    bound_milli: int | None
    silent_since_ms: int | None = None


def cited(cause: Cause) -> dict[str, Any]:
    """Return what a decision cites, as its record has it."""
    charge, reading = cause.charge, cause.reading
    found: dict[str, Any] = {
        "tariff_version": None,
        "charge_epoch": None,
        "charge_sequence": None,
        "from_reading_id": None,
        "to_reading_id": None,
        "reading_received_at_ms": None,
    }
    if charge is not None:
        found |= {
            "tariff_version": int(charge["tariff_version"]),
            "charge_epoch": int(charge["epoch"]),
            "charge_sequence": int(charge["sequence"]),
            "from_reading_id": _reading_name(charge["from_reading_id"]),
            "to_reading_id": _reading_name(charge["to_reading_id"]),
        }
    if reading is not None:
        found["to_reading_id"] = _reading_name(reading["reading_id"])
        found["reading_received_at_ms"] = int(reading["received_at_ms"])
    return found


def began_at_ms(cause: Cause) -> int:
    """Return when the reading that cut, or might have, was begun."""
    assert cause.reading is not None, "only a reading cuts"
    return int(cause.reading["began_at_ms"])


def charged_meter(cause: Cause) -> str | None:
    """Return the meter whose reading or fact charged; None: nothing was."""
    return cause.meter["meter_id"] if cause.meter and cause.charge is not None else None


def _reading_name(raw: Any) -> str | None:
    """Return the id of a reading as text; None where a register came with an assignment."""
    octets = raw.tobytes()
    return str(UUID(bytes=octets)) if any(octets) else None
