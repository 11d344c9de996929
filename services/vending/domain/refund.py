"""A refund 退电: credit is held, metering says what was used, and what is left may be paid out.

Only metering knows what was used. It echoes the hold when it has absorbed all that the book decided
before it; what lies above the echo's totals is never paid out. A transfer to another account is the
same, but for where the credit goes. A hold that nobody echoes is let go at its deadline.
"""

from typing import Any

from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import Currency, fits_int64, format_scaled
from services.common.kernel.values import value_class
from services.vending.domain import postings
from services.vending.domain.decisions import Rejection
from services.vending.domain.events.refunds import (
    CreditRefunded,
    CreditTransferred,
    RefundHeld,
    RefundRefused,
)
from services.vending.domain.origin import Origin
from services.vending.domain.owed import Owed

MINUTE_MS = 60_000
METERS_TOLD_MAX = 5
LASTS_MS_DEFAULT = 60 * MINUTE_MS
"""How long a hold waits for metering's echo."""


@value_class
class Told:
    """What of an echo a refund is settled by.

    `last_reading_at_ms`: when metering received the account's last one, None: none yet. `charged`:
    each meter and the device time up to which it is charged, None: it was not read yet; empty where
    an earlier metering did not tell. Of a meter that is held for a person that time stands still.
    `frozen`: what was used since is not charged, for it could not be; `waiting`: the meters whose
    former device's closing register waits for a person.
    """

    charged_nano: int
    account_sequence: int
    open_meters: int
    last_reading_at_ms: int | None
    decided_at_ms: int
    charged: tuple[tuple[str, int | None], ...] = ()
    frozen: bool = False
    waiting: tuple[str, ...] = ()


@value_class
class Refunding:
    """A hold that metering must echo, what was asked for, and the request that asked.

    `held_nano`: the most that is paid out, for of so much it was judged who may. `deadline_ms`:
    when it is let go, None: never, as one of an earlier release. `to_account_id`: of a transfer,
    "": it is paid out; `to_tenancy`: which of that account's it is for, None: any; `sent_minor`:
    what of it is in transit, under `sent_as`, its hold_id before; `refunded_before`: the account's
    `refunded_at` until then.
    """

    hold_id: str
    amount_minor: int
    held_nano: int
    method: str
    reason: str
    max_evidence_age_ms: int
    caller: str
    request_id: str
    fingerprint: bytes
    origin: Origin
    deadline_ms: int | None
    to_account_id: str
    to_tenancy: int | None = None
    sent_minor: int = 0
    sent_as: str = ""
    refunded_before: int = -1

    def settled(
        self,
        told: Told,
        credited_nano: int,
        owed: Owed,
        *,
        posted_sequence: int,
        currency: Currency,
        at_ms: int,
        of_what: dict[str, Any],
    ) -> CreditRefunded | CreditTransferred | RefundRefused:
        """Return what an echo makes of it; `credited_nano`, `owed`: the account's, as it is now.

        `posted_sequence`: the account sequence that usage was posted at last.
        """
        said = {
            **self.said(at_ms),
            "hold_id": self.hold_id,
            "charged_nano": told.charged_nano,
            "account_sequence": told.account_sequence,
            **of_what,
        }
        left_minor = max(credited_nano - told.charged_nano, 0) // currency.nano_per_minor
        held_minor = self.held_nano // currency.nano_per_minor
        amount_minor = self.amount_minor or min(left_minor, held_minor)
        amount_nano = amount_minor * currency.nano_per_minor
        problem = (
            behind(told.account_sequence, posted_sequence)
            or _not_charged(told)
            or self._too_old(told)
            or owes(owed)
            or too_little(amount_minor, left_minor, currency)
            or (None if fits_int64(credited_nano - amount_nano) else _too_large())
        )
        if problem:
            return RefundRefused(**said, reason=problem.reason.value, message=problem.message)
        said |= {
            "amount_minor": amount_minor,
            "amount_nano": amount_nano,
            "credited_nano": credited_nano - amount_nano,
            "reason": self.reason,
        }
        if self.to_account_id:
            return CreditTransferred(
                **said,
                to_account_id=self.to_account_id,
                postings=postings.of_transfer_out(amount_nano),
            )
        return CreditRefunded(
            **said,
            method=self.method,
            receipt_id=str(name_uuid("receipt", self.caller, self.request_id)),
            postings=postings.of_refund(self.method, amount_nano),
        )

    def let_go(
        self, at_ms: int, posted_sequence: int, charged_nano: int, of_what: dict[str, Any]
    ) -> RefundRefused:
        """Return the end of a hold that metering has not echoed in time.

        It tells the totals that were posted last: nobody said any newer ones.
        """
        return RefundRefused(
            **self.said(at_ms),
            hold_id=self.hold_id,
            charged_nano=charged_nano,
            account_sequence=posted_sequence,
            reason=Reason.NO_ECHO_IN_TIME.value,
            message="metering did not say in time what was used, so nothing was paid out: see that "
            "it runs, and ask again",
            **of_what,
        )

    def said(self, at_ms: int) -> dict[str, Any]:
        """Return whose request an event answers."""
        return {
            "caller": self.caller,
            "request_id": self.request_id,
            "fingerprint": self.fingerprint,
            "origin": self.origin,
            "occurred_at_ms": at_ms,
        }

    def _too_old(self, told: Told) -> Rejection | None:
        """Return why an echo says too little: what a meter that is silent uses is not known."""

        def is_old(at_ms: int | None) -> bool:
            return at_ms is None or told.decided_at_ms - at_ms > self.max_evidence_age_ms

        if not told.open_meters:
            return None
        silent = [meter_id for meter_id, at_ms in told.charged if is_old(at_ms)]
        is_told = bool(told.charged) or told.open_meters == 1  # of one, the account's says it
        if is_told and not silent and not is_old(told.last_reading_at_ms):
            return None
        minutes = self.max_evidence_age_ms // MINUTE_MS
        of_meters = f" of {', '.join(silent[:METERS_TOLD_MAX])}" if silent else ""
        return Rejection(
            Reason.EVIDENCE_TOO_OLD,
            f"the last reading{of_meters} is older than {minutes} min, or there is none: read "
            "the account's meters, or release them, and refund then",
        )


def refunding(event: RefundHeld) -> Refunding:
    """Return the refund that a hold begins."""
    return Refunding(
        event.hold_id,
        event.amount_minor,
        event.held_nano,
        event.method,
        event.reason,
        event.max_evidence_age_ms,
        event.caller,
        event.request_id,
        event.fingerprint,
        event.origin,
        event.deadline_ms,
        event.to_account_id or "",
        event.to_tenancy,
    )


def behind(account_sequence: int, posted_sequence: int) -> Rejection | None:
    """Return why an echo settles nothing: its totals are older than those the book has posted."""
    if account_sequence >= posted_sequence:
        return None
    text = "metering knows less than the book has posted: let what it lost be brought back, and ask"
    return Rejection(Reason.EVIDENCE_TOO_OLD, f"{text} again then")


def _not_charged(told: Told) -> Rejection | None:
    """Return why an echo says too little: not all that was read is charged."""
    if told.frozen:
        text = "metering cannot charge the account, so nobody knows what is left: thaw it before"
        return Rejection(Reason.ACCOUNT_FROZEN, text, "account_id")
    if told.waiting:
        meters = ", ".join(told.waiting[:METERS_TOLD_MAX])
        text = f"the register at which the device before ended waits for a person at {meters}"
        return Rejection(Reason.EVIDENCE_TOO_OLD, f"{text}: accept or reject it, and refund then")
    return None


def owes(owed: Owed) -> Rejection | None:
    """Return why nothing is paid out to who owes something."""
    if not owed:
        return None
    text = "emergency credit or a debt is owed: let a sale recover it, or write it off, before"
    return Rejection(Reason.ACCOUNT_HAS_DEBT, text, "account_id")


def too_little(amount_minor: int, left_minor: int, currency: Currency) -> Rejection | None:
    """Return why so much cannot be paid out; None where it is there."""
    if 0 < amount_minor <= left_minor:
        return None
    left = format_scaled(left_minor, currency.minor_decimals)
    text = f"{left} {currency.code} is left, the most that can be refunded"
    return Rejection(Reason.BALANCE_TOO_LOW, text, "amount_minor")


def _too_large() -> Rejection:
    return Rejection(Reason.AMOUNT_TOO_LARGE, "what would be left does not fit the ledger")
