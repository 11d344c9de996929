"""Orders about an account: to keep its power on, to charge it again; what became of a notice.

The book keeps what was said last; metering alone decides what it means.
"""

from services.common.kernel.errors import Bug
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.decisions import Rejection, Request, changed, stamp
from services.vending.domain.events.accounts import (
    AccountThawed,
    NoticeRecorded,
    PaymentPromised,
    PowerKept,
)
from services.vending.domain.events.event import Event

DAY_MS = 86_400_000
KEEP_POWER_MS_MAX = 400 * DAY_MS
PROMISE_MS_MAX = 31 * DAY_MS
OUTCOMES = ("delivered", "failed")


@value_class
class Orders:
    """What was ordered last, None where nothing was: instants up to which arrears cut nobody.

    `thaw_id`: of the newest order to charge the account again.
    """

    keep_power_until_ms: int | None = None
    promise_until_ms: int | None = None
    notice_id: str | None = None
    notice_outcome: str | None = None
    thaw_id: str | None = None

    def after(self, event: Event) -> "Orders":
        """Return what is ordered after an event of an order."""
        match event:
            case PowerKept():
                return changed(self, keep_power_until_ms=event.until_ms)
            case PaymentPromised():
                return changed(self, promise_until_ms=event.until_ms)
            case NoticeRecorded():
                return changed(self, notice_id=event.notice_id, notice_outcome=event.outcome)
            case AccountThawed():
                return changed(self, thaw_id=event.thaw_id)
        raise Bug(f"{event.SUBJECT} is no order about an account")


@value_class
class KeepPower:
    """Arrears shall cut nobody here (lifts, fire, clinics) before `until_ms`; None: they may.

    `authority`: what one person may do alone at the account's legal entity.
    """

    request: Request
    account_id: str
    until_ms: int | None
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_text("reason", self.reason)


@value_class
class PromisePayment:
    """A part was paid and the rest is promised: no cut before `until_ms`.

    `authority`: as of KeepPower, which it comes to.
    """

    request: Request
    account_id: str
    until_ms: int
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_text("reason", self.reason)


@value_class
class RecordNotice:
    """A notice reached its person, or did not: whoever delivers notices says so."""

    request: Request
    account_id: str
    notice_id: str
    outcome: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_uuid("notice_id", self.notice_id)
        checks.check_choice("outcome", self.outcome, OUTCOMES)


@value_class
class ThawAccount:
    """What froze the account at metering is mended: it shall be charged again.

    `authority`: what one person may do alone at the account's legal entity.
    """

    request: Request
    account_id: str
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_text("reason", self.reason)


Order = KeepPower | PromisePayment | RecordNotice | ThawAccount


def obeyed(orders: Orders, order: Order) -> Event | Rejection:
    """Return the event of an order, or why it makes none."""
    match order:
        case KeepPower():
            return _kept(orders, order)
        case PromisePayment():
            return _beyond(order, order.until_ms, PROMISE_MS_MAX) or PaymentPromised(
                **stamp(order.request),
                account_id=order.account_id,
                until_ms=order.until_ms,
                reason=order.reason,
            )
        case RecordNotice():
            return NoticeRecorded(
                **stamp(order.request),
                account_id=order.account_id,
                notice_id=order.notice_id,
                outcome=order.outcome,
            )
        case ThawAccount():
            return _thawed(order)


def _thawed(order: ThawAccount) -> AccountThawed | Rejection:
    """Return the order, whether or not the account is frozen: only metering knows.

    One that a restored book gives anew is another one, also by the same request.
    """
    request = order.request
    return needs_another(order.authority, Action.THAW, 1, "", request) or AccountThawed(
        **stamp(request),
        account_id=order.account_id,
        thaw_id=str(name_uuid("thaw", order.account_id, *request.key, request.at_ms)),
        reason=order.reason,
    )


def _kept(orders: Orders, order: KeepPower) -> PowerKept | Rejection:
    until_ms = order.until_ms
    if until_ms is None and orders.keep_power_until_ms is None:
        text = f"account {order.account_id} is on no keep-power list; nothing is to do"
        return Rejection(Reason.NOTHING_CHANGES, text, "until_ms")
    if until_ms is not None and (problem := _beyond(order, until_ms, KEEP_POWER_MS_MAX)):
        return problem
    return PowerKept(
        **stamp(order.request),
        account_id=order.account_id,
        until_ms=until_ms,
        reason=order.reason,
    )


def _beyond(order: KeepPower | PromisePayment, until_ms: int, most_ms: int) -> Rejection | None:
    """Return why power is not kept up to an instant: too long, or too long for one person."""
    days = -(-(until_ms - order.request.at_ms) // DAY_MS)
    return _out_of_range(order.request, until_ms, most_ms) or needs_another(
        order.authority, Action.KEEP_POWER, days, "", order.request
    )


def _out_of_range(request: Request, until_ms: int, ahead_ms_max: int) -> Rejection | None:
    """Return why an order cannot end at an instant: each ends, and none has ended already."""
    latest_ms = request.at_ms + ahead_ms_max
    if request.at_ms < until_ms <= latest_ms:
        return None
    return Rejection(
        Reason.UNTIL_OUT_OF_RANGE,
        f"until_ms {until_ms} must lie after now ({request.at_ms}) and not after {latest_ms}, "
        f"{ahead_ms_max // DAY_MS} days ahead; give the order again when it runs out",
        "until_ms",
    )
