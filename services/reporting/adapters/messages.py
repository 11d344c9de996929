"""Rows and lines of the read models as messages of wattvend.reporting.v1."""

from collections.abc import Iterable
from typing import Any

import asyncpg

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.units import CURRENCIES, INT64_MAX, fits_int64
from services.reporting.domain.rows import AlarmRow, PolicyVersionRow, TariffVersionRow
from wattvend.reporting.v1 import reporting_pb2 as pb

MINOR_DECIMALS_DEFAULT = 2


def minor_decimals(currency: str) -> int:
    """Return the decimals of a currency's minor unit."""
    known = CURRENCIES.get(currency)
    return known.minor_decimals if known else MINOR_DECIMALS_DEFAULT


def balance(line: asyncpg.Record) -> pb.Balance:
    """Return a line of the view account_balances as a message."""
    return pb.Balance(
        name=names.BALANCE.name(line["account_id"]),
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
                meter=names.METER.name_if(line["meter_id"]),
                account=names.ACCOUNT.name_if(line["account_id"]),
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
        name=names.ALARM.name(str(row.alarm_id)),
        kind=row.kind,
        reason=row.reason,
        account=names.ACCOUNT.name_if(row.account_id),
        meter=names.METER.name_if(row.meter_id),
        site=names.SITE.name_if(row.site_id),
        level_before=row.level_before,
        level_after=row.level_after,
        available_nano=row.available_nano,
        threshold_nano=row.threshold_nano,
        currency=row.currency,
        decided_at_ms=row.decided_at_ms,
        account_sequence=row.account_sequence,
        account_revision=row.account_revision,
        book_epoch=row.book_epoch,
        policy=names.POLICY.name_if(row.policy_id),
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
        reading_began_at_ms=row.reading_began_at_ms,
    )


def exception(line: asyncpg.Record) -> pb.ExceptionState:
    """Return a line of the view exceptions as a message."""
    fields: dict[str, Any] = dict(line)
    account_id, site_id, meter_id = (fields.pop(f"{of}_id") for of in ("account", "site", "meter"))
    fields |= {name: str(fields[name] or "") for name in ("reading_id", "ended_by")}
    return pb.ExceptionState(
        name=names.EXCEPTION.name(str(fields.pop("exception_id"))),
        account=names.ACCOUNT.name_if(account_id),
        site=names.SITE.name_if(site_id),
        meter=names.METER.name_if(meter_id),
        **fields,
    )


def site(line: asyncpg.Record) -> pb.SiteStatus:
    """Return a line of the table sites as a message."""
    return pb.SiteStatus(
        site=names.SITE.name(line["site_id"]),
        display_name=line["display_name"],
        zone=line["zone"],
        currency=line["currency"],
        legal_entity=names.LEGAL_ENTITY.name(line["legal_entity"]),
        cuts_held=line["cuts_held"],
        cuts_per_minute=line["cuts_per_minute"],
    )


def account(line: asyncpg.Record) -> pb.AccountStatus:
    """Return an account with what metering says of it as a message."""
    available_nano = line["available_nano"]
    return pb.AccountStatus(
        account=names.ACCOUNT.name(line["account_id"]),
        site=names.SITE.name(line["site_id"]),
        subject_id=line["subject_id"] or "",
        status=line["status"],
        currency=line["currency"],
        minor_decimals=minor_decimals(line["currency"]),
        legal_entity=names.LEGAL_ENTITY.name(line["legal_entity"]),
        commodity=line["commodity"],
        tariff=names.TARIFF.name(line["tariff_id"]),
        policy=names.POLICY.name(line["policy_id"]),
        credited_nano=line["credited_nano"],
        held_nano=line["held_nano"],
        book_epoch=line["book_epoch"],
        account_revision=line["revision"],
        available_nano=None if available_nano is None else int(available_nano),
        level=line["level"] or "",
        frozen=bool(line["frozen"]),
    )


def tariff(row: TariffVersionRow) -> pb.TariffVersion:
    """Return a version of a tariff as a message."""
    return pb.TariffVersion(
        tariff=names.TARIFF.name(row.tariff_id),
        version=row.version,
        commodity=row.commodity,
        currency=row.currency,
        legal_entity=names.LEGAL_ENTITY.name(row.legal_entity),
        price_micro=row.price_micro,
        effective_at_ms=row.effective_at_ms,
        plan=row.plan,
        book_epoch=row.book_epoch,
        revision=row.revision,
        published_at_ms=row.published_at_ms,
    )


def policy(row: PolicyVersionRow) -> pb.PolicyVersion:
    """Return a version of a policy as a message."""
    return pb.PolicyVersion(
        policy=names.POLICY.name(row.policy_id),
        version=row.version,
        currency=row.currency,
        alarm_1_nano=row.alarm_1_nano,
        alarm_2_nano=row.alarm_2_nano,
        overdraft_nano=row.overdraft_nano,
        restore_nano=row.restore_nano,
        lease_ms=row.lease_ms,
        max_evidence_age_ms=row.max_evidence_age_ms,
        rules=row.rules,
        book_epoch=row.book_epoch,
        revision=row.revision,
        published_at_ms=row.published_at_ms,
    )


def meter(line: asyncpg.Record) -> pb.MeterStatus:
    """Return a line of the view meter_status as a message."""
    return pb.MeterStatus(
        meter=names.METER.name_if(line["meter_id"]),
        serial=line["serial"],
        site=names.SITE.name_if(line["site_id"]),
        gateway=names.GATEWAY.name_if(line["gateway_id"]),
        account=names.ACCOUNT.name_if(line["account_id"]),
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
        name=line["device_id"],
        status=line["status"],
        reason=line["reason"],
        since_ms=line["since_ms"],
        last_seen_ms=line["last_seen_ms"] or 0,
        quarantined_readings=line["quarantined_readings"],
    )
