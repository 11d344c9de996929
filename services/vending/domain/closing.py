"""A closing 销户, of a whole account or of some of its meters: what is under way, and its end.

The meters leave, each at a register; then metering is asked by a hold what was used; by its echo
the account comes to exactly what was used, and nothing is left.
"""

from enum import StrEnum
from typing import Any

from services.common.kernel.ids import name_uuid
from services.common.kernel.units import Currency, fits_int64
from services.common.kernel.values import value_class
from services.vending.domain import postings
from services.vending.domain.decisions import changed
from services.vending.domain.events.closings import (
    AccountClosing,
    AccountSettled,
    ClosingAsked,
    ClosingCancelled,
    ClosingMetersTold,
    ClosingRegisterGiven,
    ClosingTold,
    MetersClosing,
    RemainderRounded,
)
from services.vending.domain.events.event import Event, MoneyEvent
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.origin import Origin
from services.vending.domain.owed import Owed

HOUR_MS = 3_600_000
LASTS_MS_DEFAULT = 72 * HOUR_MS
LASTS_MS_MAX = 31 * 24 * HOUR_MS
READ_AFTER_CUT_MS = 60_000
"""How much later than the order to cut a last reading was taken: a relay takes its time."""
ASK_AGAIN_MS = 24 * HOUR_MS
"""A hold that nobody echoed for so long is made anew: its record, or its echo, is lost."""


class Rounding(StrEnum):
    """How what is left, or lacking, comes to the minor unit."""

    DOWN = "down"
    UP = "up"
    HALF_EVEN = "half-even"


class Source(StrEnum):
    """Who says at which register a meter leaves of which no reading came."""

    MANUAL = "manual"
    ESTIMATED = "estimated"


@value_class
class Given:
    """A register that two persons gave for a meter."""

    meter_id: str
    register_milli: int
    source: str


@value_class
class ToldMeter:
    """What metering said of a meter in an epoch, before it leaves.

    `waits_for`: the register at which the device before ended, by the id by which a person accepts
    or rejects it; None: none waits. It is never one that did not wait when it was told.
    """

    meter_id: str
    epoch: int
    waits_for: str | None


@value_class
class ToldTotals:
    """What metering's echo came to, where a second person has to approve what is paid out."""

    charged_nano: int
    account_sequence: int
    rounding: str
    refund_minor: int


@value_class
class Closing:
    """What is under way, and the request that asked for it.

    `meters`: that leave first; `is_part`: the account stays, with the others. `hold_id` "": there
    is nothing yet that metering must echo; `before_leaving`: it is asked of the meters, and then of
    `told_meters` what it said; `asked_at_ms`: when that was asked last, and `asked`:
    how often. `method` "": nothing may be left. `cancelled`: relays have still to go back.
    """

    closing_id: str
    caller: str
    request_id: str
    fingerprint: bytes
    origin: Origin
    began_at_ms: int
    deadline_ms: int
    meters: tuple[str, ...] = ()
    is_part: bool = False
    without_cut: bool = False
    method: str = ""
    reason: str = ""
    hold_id: str = ""
    asked_at_ms: int = 0
    asked: int = 0
    given: tuple[Given, ...] = ()
    told: ToldTotals | None = None
    before_leaving: bool = False
    told_meters: tuple[ToldMeter, ...] = ()
    cancelled: bool = False

    def given_milli(self, meter_id: str) -> int | None:
        """Return the register that two persons gave for a meter, where they did."""
        registers = {given.meter_id: given.register_milli for given in self.given}
        return registers.get(meter_id)

    def told_of(self, meter_id: str, epoch: int) -> ToldMeter | None:
        """Return what metering said of a meter in an epoch; None where it was not asked."""
        told = {(each.meter_id, each.epoch): each for each in self.told_meters}
        return told.get((meter_id, epoch))

    def after(self, event: Event) -> "Closing":
        """Return it after an event of the account's stream."""
        match event:
            case ClosingRegisterGiven():
                given = Given(event.meter_id, event.register_milli, event.source)
                return changed(self, given=(*self.given, given))
            case ClosingAsked():
                return changed(
                    self,
                    hold_id=event.hold_id,
                    asked_at_ms=event.occurred_at_ms,
                    asked=self.asked + 1,
                    before_leaving=event.before_leaving,
                )
            case ClosingMetersTold():
                told_meters = tuple(ToldMeter(**each) for each in event.meters)
                return changed(self, hold_id="", told_meters=told_meters)
            case ClosingTold():
                told = ToldTotals(
                    event.charged_nano, event.account_sequence, event.rounding, event.refund_minor
                )
                return changed(self, told=told)
            case ClosingCancelled():
                return changed(self, cancelled=True)
        return self


def closing_id_of(caller: str, request_id: str) -> str:
    """Return the id of the closing that a request asks for."""
    return str(name_uuid("closing", caller, request_id))


def begun(event: AccountClosing | MetersClosing) -> Closing:
    """Return the closing that an event begins; what an earlier release began knows less."""
    who = (event.caller, event.request_id)
    is_part = isinstance(event, MetersClosing)
    hold_id = "" if isinstance(event, MetersClosing) else event.hold_id
    return Closing(
        event.closing_id or closing_id_of(*who),
        *who,
        event.fingerprint,
        event.origin,
        event.occurred_at_ms,
        event.deadline_ms or event.occurred_at_ms + LASTS_MS_DEFAULT,
        tuple(event.meters or ()),
        is_part,
        bool(event.without_cut),
        "" if isinstance(event, MetersClosing) else event.method or "",
        event.reason or "",
        hold_id,
        event.occurred_at_ms if hold_id else 0,
        1 if hold_id else 0,
    )


def rounded_minor(nano: int, nano_per_minor: int, rounding: str) -> int:
    """Return an amount in minor units. The size of it is rounded, whatever its sign.

    `down`: towards 0, `up`: away from 0, `half-even`: to the nearest, of two the even one.
    """
    minor, rest_nano = divmod(abs(nano), nano_per_minor)
    if rounding == Rounding.UP:
        minor += rest_nano > 0
    elif rounding == Rounding.HALF_EVEN:
        minor += 2 * rest_nano + minor % 2 > nano_per_minor
    return minor if nano >= 0 else -minor


@value_class
class Settlement:
    """What an account comes to that was credited `left_nano` more than it used (negative: less).

    Of what is left, emergency credit and the debt are recovered before anything is paid out; what
    is lacking, and emergency credit that is not recovered, is a debt from then on.
    """

    left_nano: int
    dropped_nano: int
    refund_minor: int
    due_minor: int
    recovered: Owed
    debt_left_minor: int
    rounding: str

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is paid out or recovered, nor lacking."""
        return not (self.refund_minor or self.due_minor or self.recovered)

    def events(
        self,
        said: dict[str, Any],
        refund: dict[str, Any],
        *,
        owed: Owed,
        credited_nano: int,
        currency: Currency,
    ) -> tuple[MoneyEvent, ...]:
        """Return what happens: the account's credit is what it used, after them.

        `said`: what all of them say; `refund`: of a credit-refunded besides; `owed`,
        `credited_nano`: the account's before.
        """
        nano = currency.nano_per_minor
        recovered_minor = self.recovered.emergency_minor + self.recovered.debt_minor
        credited_nano += (self.due_minor - recovered_minor) * nano
        dropped = {key: said[key] for key in said if key not in _OF_ECHO}
        settled = AccountSettled(
            **said,
            left_nano=self.left_nano,
            refund_minor=self.refund_minor,
            due_minor=self.due_minor,
            rounding=self.rounding,
            dropped_nano=self.dropped_nano,
            recovered_emergency_minor=self.recovered.emergency_minor,
            recovered_debt_minor=self.recovered.debt_minor,
            debt_left_minor=self.debt_left_minor,
            credited_nano=credited_nano,
            postings=postings.of_settlement(
                recovered_minor * nano,
                owed.emergency_minor * nano,
                (self.debt_left_minor - owed.debt_minor) * nano,
                self.due_minor * nano,
            ),
        )
        events: list[MoneyEvent] = [settled]
        if self.dropped_nano:
            credited_nano -= self.dropped_nano
            events.append(
                RemainderRounded(
                    **dropped,
                    amount_nano=self.dropped_nano,
                    credited_nano=credited_nano,
                    postings=postings.of_rounding(self.dropped_nano),
                )
            )
        if self.refund_minor:
            amount_nano = self.refund_minor * nano
            events.append(
                CreditRefunded(
                    **{key: said[key] for key in said if key != "closing_id"},
                    **refund,
                    amount_minor=self.refund_minor,
                    amount_nano=amount_nano,
                    credited_nano=credited_nano - amount_nano,
                    postings=postings.of_refund(refund["method"], amount_nano),
                )
            )
        return tuple(events)


_OF_ECHO = ("hold_id", "charged_nano", "account_sequence")


def settlement(left_nano: int, owed: Owed, currency: Currency, rounding: str) -> Settlement | None:
    """Return what an account comes to; None where the ledger cannot hold it."""
    nano = currency.nano_per_minor
    left_minor = rounded_minor(left_nano, nano, rounding)
    at_hand_minor, due_minor = max(left_minor, 0), max(-left_minor, 0)
    emergency_minor = min(owed.emergency_minor, at_hand_minor)
    debt_minor = min(owed.debt_minor, at_hand_minor - emergency_minor)
    debt_left_minor = (
        owed.debt_minor - debt_minor + owed.emergency_minor - emergency_minor + due_minor
    )
    if not fits_int64(debt_left_minor * nano) or not fits_int64(left_nano):
        return None
    return Settlement(
        left_nano,
        left_nano - left_minor * nano,
        at_hand_minor - emergency_minor - debt_minor,
        due_minor,
        Owed(emergency_minor, debt_minor),
        debt_left_minor,
        rounding,
    )
