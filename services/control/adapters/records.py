"""Between Avro records and the domain's values: nothing is decided here."""

from typing import Any

from services.common.kernel.ids import name_uuid
from services.control.domain.messages import (
    DeviceStatus,
    Fact,
    Gateway,
    Intent,
    LineRequest,
    Meter,
    Outcome,
    RelayState,
    Reply,
    Result,
    Site,
    Version,
)

REQUESTER = "control"


def intent(value: dict[str, Any], event_id: str) -> Intent:
    return Intent(
        value["meter_id"],
        value["account_id"],
        value["site_id"],
        value["line_id"],
        value["epoch"],
        value["version_offset"],
        value["wanted"],
        value["mode"],
        value["send_before_ms"],
        value["decided_at_ms"],
        value["cause"],
        event_id,
    )


def relay_state(value: dict[str, Any]) -> RelayState:
    return RelayState(value["meter_id"], value["position"], value["began_at_ms"])


def reply(value: dict[str, Any]) -> Reply:
    return Reply(
        value["request_id"],
        value["result"],
        value["detail"],
        value["began_at_ms"],
        value["completed_at_ms"],
        value["position"],
    )


def status(value: dict[str, Any]) -> DeviceStatus:
    return DeviceStatus(value["device_id"], value["status"], value["since_ms"], value["reason"])


def fact(subject: str, value: dict[str, Any]) -> Fact | None:
    """Return a registry fact, or None for a subject that control has no use for."""
    match subject:
        case "meter-fact":
            return _meter(value)
        case "gateway-fact":
            return Gateway(value["gateway_id"], value["address"], _version(value))
        case "site-fact":
            return Site(
                value["site_id"], value["cuts_held"], value["cuts_per_minute"], _version(value)
            )
    return None


def _meter(value: dict[str, Any]) -> Meter:
    return Meter(
        value["meter_id"],
        value["serial"],
        value["site_id"],
        value["gateway_id"],
        value["line_id"],
        value["unit"],
        value["profile"],
        value["epoch"],
        _version(value),
    )


def _version(value: dict[str, Any]) -> Version:
    return value["book_epoch"], value["revision"]


def past_outcome(value: dict[str, Any]) -> Outcome:
    """Return an outcome as it was told, and its intent."""
    of = Intent(
        value["meter_id"],
        value["account_id"],
        value["site_id"],
        value["line_id"],
        value["intent_epoch"],
        value["intent_offset"],
        value["wanted"],
        value["mode"],
        value["send_before_ms"],
        value["intent_decided_at_ms"],
        value["cause"],
    )
    return Outcome(
        of,
        value["attempt"],
        Result(value["result"]),
        value["detail"],
        value["decided_at_ms"],
        value["request_id"],
        value["commanded_at_ms"],
        value["completed_at_ms"],
        value["read_back_position"],
        value["read_back_began_at_ms"],
    )


def outcome_record(outcome: Outcome, worker: str) -> dict[str, Any]:
    of = outcome.intent
    named = (of.meter_id, of.epoch, of.offset, outcome.attempt, outcome.result)
    # A worker that has lost count of attempts numbers them anew; the command is another one.
    command = () if outcome.request_id is None else (outcome.request_id,)
    identity = name_uuid("command-outcome", *named, *command)
    return {
        "outcome_id": str(identity),
        "meter_id": of.meter_id,
        "site_id": of.site_id,
        "account_id": of.account_id,
        "line_id": of.line_id,
        "intent_epoch": of.epoch,
        "intent_offset": of.offset,
        "wanted": of.wanted,
        "mode": of.mode,
        "cause": of.cause,
        "send_before_ms": of.send_before_ms,
        "intent_decided_at_ms": of.decided_at_ms,
        "attempt": outcome.attempt,
        "result": outcome.result.value,
        "detail": outcome.detail,
        "request_id": outcome.request_id,
        "commanded_at_ms": outcome.commanded_at_ms,
        "completed_at_ms": outcome.completed_at_ms,
        "read_back_position": outcome.read_back_position,
        "read_back_began_at_ms": outcome.read_back_began_at_ms,
        "decided_at_ms": outcome.decided_at_ms,
        "worker": worker,
    }


def request_record(request: LineRequest) -> dict[str, Any]:
    meter = request.meter
    return {
        "request_id": request.request_id,
        "requester": REQUESTER,
        "line_id": meter.line_id,
        "gateway_id": meter.gateway_id,
        "meter_id": meter.meter_id,
        "serial": meter.serial,
        "unit": meter.unit,
        "profile": meter.profile,
        "operation": "read-live" if request.address is None else "write-registers",
        "address": request.address,
        "values": list(request.values),
        "not_after_ms": request.not_after_ms,
        "intent_epoch": request.intent.epoch,
        "intent_offset": request.intent.offset,
        "attempt": request.attempt,
        "requested_at_ms": request.requested_at_ms,
    }
