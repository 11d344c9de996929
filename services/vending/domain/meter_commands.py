"""What may be asked of a meter."""

from services.common.kernel.reasons import Reason
from services.vending.domain.decisions import Accepted, Decision, Rejection, answered
from services.vending.domain.meter import Meter, meter_not_found
from services.vending.domain.meter_device import RegisterMeter, register
from services.vending.domain.meter_epochs import (
    AssignMeter,
    ChangeRatio,
    ReleaseMeter,
    ReplaceMeter,
    assign,
    change_ratio,
    release,
    replace,
)
from services.vending.domain.meter_orders import ForceRelay, ResolveReading, force, resolve

Order = AssignMeter | ReleaseMeter | ReplaceMeter | ChangeRatio | ResolveReading | ForceRelay
"""What may happen to a meter that exists."""


def decide(state: Meter | None, command: RegisterMeter | Order) -> Decision:
    """Return what a command does to a meter, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, RegisterMeter):
        if state:
            return Rejection(
                Reason.ALREADY_EXISTS,
                f"meter {command.meter_id} is registered already; choose another meter_id",
                "meter_id",
            )
        return register(command)
    if state is None:
        return meter_not_found(command.meter_id)
    return _obey(state, command)


def _obey(state: Meter, order: Order) -> Decision:
    match order:
        case AssignMeter():
            return assign(state, order)
        case ReleaseMeter():
            return release(state, order)
        case ReplaceMeter():
            return replace(state, order)
        case ChangeRatio():
            return change_ratio(state, order)
        case ResolveReading():
            return Accepted((resolve(state, order),))
        case ForceRelay():
            return force(state, order)
