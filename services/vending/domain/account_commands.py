"""What may be asked of an account, and what its meters' streams and metering tell it."""

from services.common.kernel.values import value_class
from services.vending.domain.account import Account, account_not_found, no_room, not_open, of_what
from services.vending.domain.account_opening import OpenAccount, account_exists, open_
from services.vending.domain.decisions import (
    Accepted,
    Decision,
    Rejection,
    Request,
    answered,
    stamp,
)
from services.vending.domain.events.accounts import AccountMeterJoined, AccountMeterLeft
from services.vending.domain.events.event import Event
from services.vending.domain.lending import GrantEmergencyCredit, SetDebt, grant, set_debt
from services.vending.domain.orders import (
    KeepPower,
    Order,
    PromisePayment,
    RecordNotice,
    ThawAccount,
    obeyed,
)
from services.vending.domain.sale import Sell, sell
from services.vending.domain.usage import PostUsage


@value_class
class _OfMeter:
    """What a meter's stream tells the account: at which register an `epoch` begins or ends here."""

    request: Request
    account_id: str
    meter_id: str
    epoch: int
    register_milli: int


@value_class
class JoinMeter(_OfMeter):
    """A meter whose stream says that it belongs here since `epoch`, from `register_milli` on."""


@value_class
class LeaveMeter(_OfMeter):
    """A meter whose stream says that its `epoch` here ended at `register_milli`."""


Command = (
    OpenAccount | Sell | GrantEmergencyCredit | SetDebt | JoinMeter | LeaveMeter | PostUsage | Order
)


def decide(state: Account | None, command: Command) -> Decision:  # noqa: C901, PLR0911
    """Return what a command does to an account, or why nothing may happen."""
    if isinstance(command, PostUsage):
        return Accepted(() if state is None else usage_news(state, command))
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, OpenAccount):
        if state:
            return account_exists(command.account_id)
        return open_(command)
    if state is None:
        return account_not_found(command.account_id)
    match command:
        case Sell():
            return sell(state, command)
        case GrantEmergencyCredit():
            return grant(state, command)
        case SetDebt():
            return set_debt(state, command)
        case JoinMeter():
            return not_open(state) or no_room(state) or _heard(AccountMeterJoined, command)
        case LeaveMeter():
            return _heard(AccountMeterLeft, command)
        case KeepPower() | PromisePayment() | RecordNotice() | ThawAccount():
            return _obey(state, command)


def _obey(state: Account, order: Order) -> Decision:
    # What became of a notice is known whenever it is known.
    problem = None if isinstance(order, RecordNotice) else not_open(state)
    said = problem or obeyed(state.orders, order)
    return said if isinstance(said, Rejection) else Accepted((said,))


def _heard(kind: type[AccountMeterJoined | AccountMeterLeft], told: _OfMeter) -> Decision:
    event = kind(
        **stamp(told.request),
        account_id=told.account_id,
        meter_id=told.meter_id,
        epoch=told.epoch,
        register_milli=told.register_milli,
    )
    return Accepted((event,))


def usage_news(state: Account, told: PostUsage) -> tuple[Event, ...]:
    """Return the event that posts usage, where it is news; whatever became of the account."""
    return state.used.news(told, state.shard, of_what(state))
