"""What a decision depended on: who approves sees it, and where it differs then nothing is done.

It stands in the proposal beside the command. Of what never stands still, a balance or a debt, it is
the most that may change hands; less may.
"""

from collections.abc import Mapping
from typing import Any

from services.common.kernel.reasons import Reason
from services.vending.domain.account import Account
from services.vending.domain.authority import Authority
from services.vending.domain.changes import ChangeTenant, ChangeTerms, changes_hands_minor
from services.vending.domain.closings import CloseAccount, GiveRegister
from services.vending.domain.corrections import TransferCredit
from services.vending.domain.decisions import Rejection
from services.vending.domain.lending import SetDebt, debt_size_minor
from services.vending.domain.meter import Meter
from services.vending.domain.meter_epochs import AssignMeter
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.orders import KeepPower, PromisePayment
from services.vending.domain.policy import Policy
from services.vending.domain.tariff import Tariff

Seen = Mapping[str, int | str | None]
"""Name → what it was. A name that begins with `at_most_` is of an amount that may be less."""
AT_MOST = "at_most_"


def seen(state: Any, command: Any) -> Seen:
    """Return what a command on a state depends on: whose it is, on which version, how much."""
    return _of_state(state, command) | _of_command(state, command)


def _of_state(  # noqa: PLR0911 - one a case
    state: Any, command: Any
) -> dict[str, int | str | None]:
    if getattr(command, "document_id", ""):
        return {}  # it says its base version itself
    match state:
        case None:
            return {"version": 0}  # it is to be the first
        case Account():
            return {"tenancy": len(state.tenancies)}
        case Meter():
            is_relay = isinstance(command, ForceRelay)
            of = command.of if is_relay else command.owner
            return {
                "account_id": state.account_id,
                "tenancy": len(of.tenancies) if of else 0,
                **({"forced": state.forced} if is_relay else {"epoch": state.epoch}),
            }
        case Policy():
            return {"version": state.newest}
        case Tariff() | Authority():
            return {"version": state.version}
    return {}  # of a batch: whose its targets were, it has itself


def _of_command(  # noqa: PLR0911 - one a case
    state: Any, command: Any
) -> dict[str, int | str | None]:
    match command:
        case ChangeTenant():
            return {AT_MOST + "minor": changes_hands_minor(state)}
        case ChangeTerms():
            return {"tariff_id": state.tariff_id, "policy_id": state.policy_id}
        case KeepPower():
            return {"keep_power_until_ms": state.orders.keep_power_until_ms}
        case PromisePayment():
            return {"promise_until_ms": state.orders.promise_until_ms}
        case GiveRegister():
            return {"epoch": command.epoch}
        case SetDebt():
            more_minor = command.debt_minor - state.owed.debt_minor
            return {
                AT_MOST + "owed_minor": max(more_minor, 0),
                AT_MOST + "given_up_minor": max(-more_minor, 0),
                AT_MOST + "minor": debt_size_minor(state, command),
            }
        case TransferCredit(to=Account() as to) | AssignMeter(account=Account() as to):
            return {"to_tenancy": len(to.tenancies)}
        case CloseAccount():
            return {"meters": " ".join(meter.meter_id for meter in state.meters)}
    return {}


def changed_since(was: Seen, now: Seen) -> Rejection | None:
    """Return why nothing is done of what was decided on another state; None where it is the same.

    `was` may say less than `now`: a proposal of an earlier release says nothing.
    """
    changes = [
        f"{name} was {value} and is {now.get(name)}"
        for name, value in was.items()
        if now.get(name) != value and not _is_less(name, value, now.get(name))
    ]
    if not changes:
        return None
    text = f"this was asked for on another state: {', '.join(changes)}; look at it, and ask anew"
    return Rejection(Reason.CHANGED_SINCE, text)


def _is_less(name: str, was: int | str | None, now: int | str | None) -> bool:
    is_amount = name.startswith(AT_MOST) and isinstance(was, int) and isinstance(now, int)
    return is_amount and now < was  # type: ignore[operator]
