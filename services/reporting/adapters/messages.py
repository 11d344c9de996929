"""Rows and lines of the read models as messages of wattvend.reporting.v1."""

from collections.abc import Iterable

import asyncpg

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.units import CURRENCIES, INT64_MAX, fits_int64
from services.reporting.domain.rows import AlarmRow
from wattvend.reporting.v1 import reporting_pb2 as pb

MINOR_DECIMALS_DEFAULT = 2


def minor_decimals(currency: str) -> int:
    """Return the decimals of a currency's minor unit."""
    known = CURRENCIES.get(currency)
    return known.minor_decimals if known else MINOR_DECIMALS_DEFAULT


def balance(line: asyncpg.Record) -> pb.Balance:
    """Return a line of the view account_balances as a message."""
    return pb.Balance(
        account_id=line["account_id"],
        currency=line["currency"],
        minor_decimals=minor_decimals(line["currency"]),
        credited_nano=line["credited_nano"],
        charged_nano=line["charged_nano"],
        held_nano=line["held_nano"],
        available_nano=int(line["available_nano"]),
        level=line["level"],
        frozen=line["frozen"],
        account_sequence=line["account_sequence"],
        account_revision=line["account_revision"],
        book_epoch=line["book_epoch"],
        as_of_ms=line["as_of_ms"],
    )


def consumption(lines: Iterable[asyncpg.Record]) -> pb.Consumption:
    """Return lines of charges and their sums. Raises InvalidInput where they have none."""
    found = list(lines)
    units = {(line["commodity"], line["currency"]) for line in found}
    if len(units) > 1:
        raise InvalidInput(
            Reason.CURRENCY_MISMATCH,
            f"the period holds charges in {', '.join(' '.join(unit) for unit in sorted(units))}, "
            "which have no sum: ask for a shorter one",
            field="from_ms",
        )
    commodity, currency = next(iter(units), ("", ""))
    sums = {
        name: sum(int(line[name]) for line in found) for name in ("energy_milli", "amount_nano")
    }
    if not all(fits_int64(value) for value in sums.values()):
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"the sum is beyond {INT64_MAX}: ask for a shorter period",
            field="from_ms",
        )
    return pb.Consumption(
        meters=[
            pb.MeterConsumption(
                meter_id=line["meter_id"],
                account_id=line["account_id"],
                epoch=line["epoch"],
                from_register_milli=line["from_register_milli"],
                to_register_milli=line["to_register_milli"],
                first_ms=line["first_ms"],
                last_ms=line["last_ms"],
                charges=line["charges"],
                energy_milli=int(line["energy_milli"]),
                amount_nano=int(line["amount_nano"]),
            )
            for line in found
        ],
        commodity=commodity,
        currency=currency,
        **sums,
    )


def alarm(row: AlarmRow) -> pb.Alarm:
    """Return a decision of metering as a message."""
    return pb.Alarm(
        alarm_id=str(row.alarm_id),
        kind=row.kind,
        reason=row.reason,
        account_id=row.account_id,
        meter_id=row.meter_id or "",
        site_id=row.site_id,
        level_before=row.level_before,
        level_after=row.level_after,
        available_nano=row.available_nano,
        threshold_nano=row.threshold_nano,
        currency=row.currency,
        decided_at_ms=row.decided_at_ms,
        account_sequence=row.account_sequence,
        account_revision=row.account_revision,
        book_epoch=row.book_epoch,
        policy_id=row.policy_id or "",
        policy_version=row.policy_version or 0,
        charge_epoch=row.charge_epoch or 0,
        charge_sequence=row.charge_sequence or 0,
        from_reading_id=str(row.from_reading_id or ""),
        to_reading_id=str(row.to_reading_id or ""),
        reading_received_at_ms=row.reading_received_at_ms,
        log_offset=row.log_offset,
        notice_id=row.notice_id or "",
        notice_outcome=row.notice_outcome or "",
        arrears_since_ms=row.arrears_since_ms,
        meter_epoch=row.meter_epoch or 0,
    )


def exception(line: asyncpg.Record) -> pb.ExceptionState:
    """Return a line of the view exceptions as a message."""
    texts = {name: str(line[name] or "") for name in _EXCEPTION_TEXTS}
    return pb.ExceptionState(**{**dict(line), **texts})


_EXCEPTION_TEXTS = ("exception_id", "account_id", "meter_id", "reading_id", "ended_by")


def meter(line: asyncpg.Record) -> pb.MeterStatus:
    """Return a line of the view meter_status as a message."""
    return pb.MeterStatus(
        meter_id=line["meter_id"],
        serial=line["serial"],
        site_id=line["site_id"],
        gateway_id=line["gateway_id"],
        account_id=line["account_id"],
        status=line["status"],
        last_seen_ms=line["last_seen_ms"] or 0,
        register_milli=line["register_milli"],
        wanted=line["wanted"] or "",
        reported=line["reported"] or "",
        reported_at_ms=line["reported_at_ms"] or 0,
        level=line["level"] or "",
    )


def lost(line: asyncpg.Record) -> pb.LostDevice:
    """Return a line of the view lost_devices as a message."""
    return pb.LostDevice(
        device_id=line["device_id"],
        status=line["status"],
        reason=line["reason"],
        since_ms=line["since_ms"],
        last_seen_ms=line["last_seen_ms"] or 0,
        quarantined_readings=line["quarantined_readings"],
    )
