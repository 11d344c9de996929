"""What a meter is after each event of its stream."""

from typing import Any

from services.common.kernel.errors import Bug
from services.vending.domain.decisions import Answers, changed
from services.vending.domain.events.event import Event
from services.vending.domain.events.meters import (
    MeterAssigned,
    MeterHoldResolved,
    MeterRatioChanged,
    MeterRegistered,
    MeterReplaced,
    RelayForced,
)
from services.vending.domain.meter import COMMAND, OFF, PREPAID, Meter, Previous


def evolve(state: Meter | None, event: Event) -> Meter:
    """Return the meter after an event of its stream."""
    match state, event:
        case None, MeterRegistered():
            return _first(event)
        case Meter(), MeterAssigned():
            return _next_epoch(
                state,
                event,
                event.register_milli,
                event.register_milli,
                account_id=event.account_id,
                shard=event.shard,
                closing_id=state.closing_id if event.is_house else "",
            )
        case Meter(), MeterReplaced():
            return _next_epoch(
                state,
                event,
                event.closing_register_milli,
                event.opening_register_milli,
                serial=event.serial,
                unit=event.unit,
                profile=event.profile,
                ratio=event.ratio,
                max_power_w=event.max_power_w,
                max_power_source=event.max_power_source,
                register_max_milli=event.register_max_milli,
            )
        case Meter(), MeterRatioChanged():
            return _next_epoch(
                state,
                event,
                event.register_milli,
                event.register_milli,
                ratio=event.ratio,
                max_power_w=event.max_power_w,
                max_power_source=event.max_power_source,
            )
        case Meter(), MeterHoldResolved():
            return changed(
                state,
                answers=state.answers.after(event),
                resolves_reading_id=event.reading_id,
                resolution=event.resolution,
            )
        case Meter(), RelayForced():
            forced = None if event.position == PREPAID else event.position
            return changed(
                state,
                answers=state.answers.after(event),
                forced=forced,
                # A closing that gives back what it had cut has no say about it any more.
                closing_id=(event.closing_id or "") if forced == OFF else "",
            )
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into a meter's stream here")


def _first(event: MeterRegistered) -> Meter:
    said = event.max_power_w is not None and event.max_power_source is None
    return Meter(
        Answers().after(event),
        event.meter_id,
        event.meter_key,
        event.serial,
        event.site_id,
        event.gateway_id,
        event.line_id,
        event.unit,
        event.profile,
        event.commodity,
        event.ratio,
        event.max_power_w,
        COMMAND if said else event.max_power_source,  # events of before say a bound, and no source
        event.register_max_milli,
        event.currency,
        event.legal_entity,
        event.house_account_id,
        event.house_shard,
        event.house_account_id,
        event.house_shard,
    )


def _next_epoch(
    state: Meter,
    event: MeterAssigned | MeterReplaced | MeterRatioChanged,
    closing_milli: int,
    opening_milli: int,
    **changes: Any,
) -> Meter:
    """Return the meter in its next epoch: what was held in the one before is settled by it."""
    return changed(
        state,
        answers=state.answers.after(event),
        epoch=event.epoch,
        closing_register_milli=closing_milli,
        opening_register_milli=opening_milli,
        previous=Previous(state.account_id, state.shard, state.epoch),
        resolves_reading_id=None,
        resolution=None,
        **changes,
    )
