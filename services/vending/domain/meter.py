"""A meter: what it is, where it hangs, whose it is. Assignment is decided in its stream.

A meter without a customer belongs to its own house account, so every interval of energy has exactly
one owner. Each change of owner, device, register or ratio raises the epoch and carries the register
at which it happened.
"""

from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain.decisions import Answers, Rejection

FIRST_EPOCH = 1
OFF = "off"
ON = "on"
PREPAID = "prepaid"
COMMAND = "command"
"""Source of what the caller said himself."""


@value_class
class Previous:
    """Whose the meter was before, until its `epoch` ended."""

    account_id: str
    shard: int
    epoch: int


@value_class
class Meter:
    """The folded stream of a meter.

    The present epoch begins at `opening_register_milli`, the one before ended at
    `closing_register_milli`: both None at the first epoch, which the first reading opens. Of a
    present epoch are also the last judgement of a held reading, `resolves_reading_id` and
    `resolution`. `forced`: off or on by order; None: as the balance says. `closing_id`: the closing
    that forced it off, "" where a person did, or where somebody has moved in since.
    """

    answers: Answers
    meter_id: str
    meter_key: int
    serial: str
    site_id: str
    gateway_id: str
    line_id: str
    unit: int
    profile: str
    commodity: str
    ratio: int
    max_power_w: int | None
    max_power_source: str | None
    register_max_milli: int | None
    currency: str
    legal_entity: str
    house_account_id: str
    house_shard: int
    account_id: str
    shard: int
    epoch: int = FIRST_EPOCH
    opening_register_milli: int | None = None
    closing_register_milli: int | None = None
    previous: Previous | None = None
    resolves_reading_id: str | None = None
    resolution: str | None = None
    forced: str | None = None
    closing_id: str = ""

    @property
    def is_house(self) -> bool:
        """Whether no customer has the meter."""
        return self.account_id == self.house_account_id

    @property
    def said_power_w(self) -> int | None:
        """What a caller said of the load behind the meter: it stays whatever hangs before it."""
        return self.max_power_w if self.max_power_source == COMMAND else None


def meter_not_found(meter_id: str) -> Rejection:
    """Return the refusal of a command on a meter that is not there."""
    return Rejection(
        Reason.METER_NOT_FOUND, f"there is no meter {meter_id!r}; register it first", "meter_id"
    )


def nothing_changes(what: str, field: str) -> Rejection:
    """Return the refusal of what is so already."""
    return Rejection(Reason.NOTHING_CHANGES, f"{what} already; nothing is to do", field)
