"""What a device can say that cannot be used.

InvalidInput
└── Unusable   a message or a block of registers; `fault` is its stable name
"""

from enum import StrEnum

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason


class Fault(StrEnum):
    """Why something a device said is set aside: label of metrics, reason in device-status."""

    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    FIELD_MISSING = "field-missing"
    FIELD_WRONG = "field-wrong"
    REGISTER_NEGATIVE = "register-negative"
    REGISTER_ABOVE_MAXIMUM = "register-above-maximum"
    RATIO_IMPOSSIBLE = "ratio-impossible"
    CLOCK_IMPOSSIBLE = "clock-impossible"
    CLOCK_AHEAD = "clock-ahead"
    CLOCK_BEHIND = "clock-behind"
    UNKNOWN_DEVICE = "unknown-device"
    WRONG_GATEWAY = "wrong-gateway"
    SITE_UNKNOWN = "site-unknown"
    PROFILE_UNFIT = "profile-unfit"
    SERIAL_MISMATCH = "serial-mismatch"


class Unusable(InvalidInput):
    """A device's words cannot be used; `message` says why and `fault` names it."""

    def __init__(self, fault: Fault, message: str, *, field: str = "") -> None:
        super().__init__(Reason.INVALID_ARGUMENT, message, field=field)
        self.fault = fault
