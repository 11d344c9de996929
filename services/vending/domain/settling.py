"""The end of a hold: metering's echo says what was used, and a refund or a closing is settled.

Which of the two is judged by the hold that the echo answers.
"""

from typing import Any

from services.common.kernel.errors import Bug
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import format_nano, format_scaled
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.account import Account, of_what
from services.vending.domain.account_commands import usage_news
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.closing import Closing, Rounding, Settlement, ToldTotals, settlement
from services.vending.domain.decisions import Accepted, Decision, Rejection, Request, stamp
from services.vending.domain.events.closings import (
    AccountClosed,
    AccountCloseRefused,
    ClosingMetersTold,
    ClosingTold,
    MetersClosed,
)
from services.vending.domain.events.event import Event
from services.vending.domain.refund import Refunding, Told, behind
from services.vending.domain.usage import PostUsage

METERS_TOLD_MAX = 5


@value_class
class SettleAccount:
    """What is left shall be paid out, as metering's echo had told: with a second person."""

    request: Request
    account_id: str
    closing_id: str
    refund_minor: int
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_uuid("closing_id", self.closing_id)


@value_class
class SettleClosing:
    """Metering's echo of a hold: what was charged in all, and which meters it still counts here.

    Of a closing, or of a refund, which asks besides when metering received the last reading, and
    when it decided. `usage`: the same by component; None where an earlier metering did not tell.
    `frozen`, `waiting` (meter, id of the closing register that waits for a person): what is not
    charged. `authority`, `rounding`: of legal entity and policy.
    """

    account_id: str
    hold_id: str
    charged_nano: int
    account_sequence: int
    open_meters: int
    at_ms: int
    usage: PostUsage | None = None
    last_reading_at_ms: int | None = None
    decided_at_ms: int = 0
    frozen: bool = False
    waiting: tuple[tuple[str, str], ...] = ()
    authority: Authority | None = None
    rounding: str = Rounding.DOWN.value


def closing_not_found(account_id: str, closing_id: str) -> Rejection:
    """Return the refusal of a command on a closing that is not there, or over."""
    text = f"account {account_id} is in no closing {closing_id}; list its closings"
    return Rejection(Reason.CLOSING_NOT_FOUND, text, "closing")


def not_now(text: str, field: str = "closing") -> Rejection:
    """Return the refusal of what a closing does not wait for."""
    return Rejection(Reason.CLOSING_NOT_WAITING, text, field)


def close_refusal(state: Account, reason: Reason, charged_nano: int) -> Rejection:
    """Return why an account cannot be closed, for a person."""
    currency = checks.currency_named(state.currency)
    if reason is Reason.ACCOUNT_HAS_METERS:
        meters = ", ".join(meter.meter_id for meter in state.meters[:METERS_TOLD_MAX])
        text = f"has meters ({meters or 'metering still counts one'}): release them first"
    elif reason is Reason.ACCOUNT_HAS_DEBT:
        emergency, debt = (
            format_scaled(owed_minor, currency.minor_decimals)
            for owed_minor in (state.owed.emergency_minor, state.owed.debt_minor)
        )
        text = f"owes {emergency} of emergency credit and a debt of {debt}: sell what recovers it"
    elif reason is Reason.EVIDENCE_TOO_OLD:
        text = (
            "cannot be closed: metering knows less than the book has posted; let what it lost be "
            "brought back, and close it then"
        )
    elif reason is Reason.ACCOUNT_FROZEN:
        text = (
            "is frozen: metering cannot charge it, so nobody knows what it used; mend the cause, "
            "thaw it, and close it again when its meters have been read"
        )
    elif reason is Reason.AMOUNT_TOO_LARGE:
        text = "would owe more than its ledger holds; write off before"
    else:
        balance_nano = state.credited_nano - charged_nano
        text = (
            f"has a balance of {format_nano(balance_nano, currency)}: it must be 0, or say how it "
            "is paid out"
        )
    return Rejection(reason, f"account {state.account_id} {text}", "account_id")


def closing_of(state: Account, closing_id: str) -> Closing | Rejection:
    """Return the closing that is under way, or why that is another one, or none."""
    closing = state.closing
    if closing is None or closing.closing_id != closing_id or closing.cancelled:
        return closing_not_found(state.account_id, closing_id)
    return closing


def answer(state: Account | None, echo: SettleClosing) -> Decision:
    """Settle on an echo. An echo of another hold, or of one that is settled, changes nothing."""
    if state is None:
        return Accepted(())
    if state.refunding is not None and state.refunding.hold_id == echo.hold_id:
        return _refund(state, state.refunding, echo)
    closing = state.closing
    if closing is None or closing.hold_id != echo.hold_id or closing.cancelled or closing.told:
        return Accepted(())
    if closing.before_leaving:
        return Accepted(_meters_told(state, closing, echo))
    used = () if echo.usage is None else usage_news(state, echo.usage)
    ended = _part_ended if closing.is_part else _ended
    return Accepted((*used, *ended(state, closing, echo)))


def _said(closing: Closing, at_ms: int) -> dict[str, Any]:
    """Return what every event says that the closing's own request comes to."""
    return {
        "caller": closing.caller,
        "request_id": closing.request_id,
        "fingerprint": closing.fingerprint,
        "occurred_at_ms": at_ms,
        "origin": closing.origin,
    }


def _meters_told(state: Account, closing: Closing, echo: SettleClosing) -> tuple[Event, ...]:
    if echo.usage is None:
        return ()  # a metering of before: it is asked again, when there is a newer one
    waiting = dict(echo.waiting)
    told = ClosingMetersTold(
        **_said(closing, echo.at_ms),
        account_id=state.account_id,
        closing_id=closing.closing_id,
        hold_id=closing.hold_id,
        meters=[
            {
                "meter_id": stand["meter_id"],
                "epoch": stand["epoch"],
                "waits_for": waiting.get(stand["meter_id"]),
            }
            for stand in echo.usage.meters
        ],
    )
    return (*usage_news(state, echo.usage), told)


def _part_ended(state: Account, closing: Closing, echo: SettleClosing) -> tuple[Event, ...]:
    if behind(echo.account_sequence, state.used.account_sequence):
        return ()  # it is asked again
    if echo.frozen:
        return (_refused(state, closing, echo, Reason.ACCOUNT_FROZEN),)
    return (
        MetersClosed(
            **_said(closing, echo.at_ms),
            account_id=state.account_id,
            closing_id=closing.closing_id,
            hold_id=closing.hold_id,
            charged_nano=echo.charged_nano,
            account_sequence=echo.account_sequence,
            **of_what(state),
        ),
    )


def _ended(state: Account, closing: Closing, echo: SettleClosing) -> tuple[Event, ...]:
    currency = checks.currency_named(state.currency)
    left_nano = state.credited_nano - echo.charged_nano
    # Without a method nothing is paid out or claimed: what is less than a minor unit is dropped.
    rounding = echo.rounding if closing.method else Rounding.DOWN.value
    comes_to = settlement(left_nano, state.owed, currency, rounding)
    said = _said(closing, echo.at_ms)
    of_echo: dict[str, Any] = {
        "hold_id": closing.hold_id,
        "charged_nano": echo.charged_nano,
        "account_sequence": echo.account_sequence,
    }
    if reason := _unfinished(state, closing, echo, comes_to):
        return (_refused(state, closing, echo, reason),)
    assert comes_to is not None, "what the ledger cannot hold is a reason"
    request = Request(
        closing.caller, closing.request_id, closing.fingerprint, echo.at_ms, origin=closing.origin
    )
    if _needs_another(state, comes_to, echo.authority, request):
        return (
            ClosingTold(
                **said,
                **of_echo,
                account_id=state.account_id,
                closing_id=closing.closing_id,
                rounding=rounding,
                refund_minor=comes_to.refund_minor,
                **of_what(state),
            ),
        )
    totals = ToldTotals(echo.charged_nano, echo.account_sequence, rounding, comes_to.refund_minor)
    return _settled(state, closing, totals, comes_to, request)


def _refused(
    state: Account, closing: Closing, echo: SettleClosing, reason: Reason
) -> AccountCloseRefused:
    return AccountCloseRefused(
        **_said(closing, echo.at_ms),
        account_id=state.account_id,
        hold_id=closing.hold_id,
        charged_nano=echo.charged_nano,
        account_sequence=echo.account_sequence,
        **of_what(state),
        reason=reason.value,
    )


def _unfinished(
    state: Account, closing: Closing, echo: SettleClosing, comes_to: Settlement | None
) -> Reason | None:
    """Return why an account is not closed on an echo; None where it is."""
    if behind(echo.account_sequence, state.used.account_sequence):
        return Reason.EVIDENCE_TOO_OLD
    if echo.frozen:
        return Reason.ACCOUNT_FROZEN
    if echo.open_meters or state.meters:
        return Reason.ACCOUNT_HAS_METERS
    if comes_to is None:
        return Reason.AMOUNT_TOO_LARGE
    if not closing.method and not comes_to.is_nothing:
        return Reason.ACCOUNT_HAS_BALANCE
    return None


def _needs_another(
    state: Account, comes_to: Settlement, authority: Authority | None, request: Request
) -> Rejection | None:
    if not comes_to.refund_minor:
        return None
    return needs_another(authority, Action.REFUND, comes_to.refund_minor, state.currency, request)


def _settled(
    state: Account, closing: Closing, told: ToldTotals, comes_to: Settlement, request: Request
) -> tuple[Event, ...]:
    """Return what ends an account, by the request of who asked for that, or approved it."""
    of_account: dict[str, Any] = {"account_id": state.account_id, **of_what(state)}
    of_echo: dict[str, Any] = {
        "hold_id": closing.hold_id,
        "charged_nano": told.charged_nano,
        "account_sequence": told.account_sequence,
    }
    paid_out = {
        "method": closing.method,
        "reason": closing.reason,
        "receipt_id": str(name_uuid("receipt", closing.caller, closing.request_id)),
    }
    money = comes_to.events(
        {**stamp(request), **of_account, **of_echo, "closing_id": closing.closing_id},
        paid_out,
        owed=state.owed,
        credited_nano=state.credited_nano,
        currency=checks.currency_named(state.currency),
    )
    closed = AccountClosed(**stamp(request), **of_account, **of_echo)
    # Where nothing is left, to the last unit, there is nothing to settle.
    return (*money, closed) if comes_to.left_nano or state.owed else (closed,)


def settle(state: Account, command: SettleAccount) -> Decision:
    """Return what ends an account whose settlement a second person has approved."""
    closing = closing_of(state, command.closing_id)
    if isinstance(closing, Rejection):
        return closing
    told = closing.told
    if told is None:
        return not_now("metering has not yet said what was used; wait for that")
    if command.refund_minor != told.refund_minor:
        return not_now(f"{told.refund_minor} minor units are left; settle that", "refund_minor")
    left_nano = state.credited_nano - told.charged_nano
    currency = checks.currency_named(state.currency)
    comes_to = settlement(left_nano, state.owed, currency, told.rounding)
    if comes_to is None or comes_to.refund_minor != told.refund_minor:
        raise Bug(f"account {state.account_id} changed while it was being closed: {comes_to}")
    problem = _needs_another(state, comes_to, command.authority, command.request)
    return problem or Accepted(_settled(state, closing, told, comes_to, command.request))


def _refund(state: Account, refund: Refunding, echo: SettleClosing) -> Decision:
    told = Told(
        echo.charged_nano,
        echo.account_sequence,
        echo.open_meters,
        echo.last_reading_at_ms,
        echo.decided_at_ms,
        tuple(
            (meter["meter_id"], meter["time_ms"])
            for meter in (echo.usage.meters if echo.usage else ())
        ),
        echo.frozen,
        tuple(meter_id for meter_id, _ in echo.waiting),
    )
    settled = refund.settled(
        told,
        state.credited_nano,
        state.owed,
        posted_sequence=state.used.account_sequence,
        currency=checks.currency_named(state.currency),
        at_ms=echo.at_ms,
        of_what={"account_id": state.account_id, **of_what(state)},
    )
    used = () if echo.usage is None else usage_news(state, echo.usage)
    return Accepted((*used, settled))
