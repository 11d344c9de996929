"""wattvend.reporting.v1: requests checked, questions asked, answers filled."""

import asyncio
import re
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import asyncpg

from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import ID_PATTERN, column_key
from services.common.kernel.reasons import Reason
from services.common.kernel.units import CURRENCIES, INT64_MAX, fits_int64
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.queries import Cutoff, Queries
from services.reporting.domain.explain import CutIntent
from services.reporting.domain.paging import cursor_of, page_size_of, token_of
from services.reporting.domain.rows import AlarmRow, ChargeRow, CommandOutcomeRow, PriceLineRow
from wattvend.reporting.v1 import reporting_pb2 as pb
from wattvend.reporting.v1 import reporting_pb2_grpc

VISIBLE_WITHIN_S = 2.0
"""How long GetBalance waits for min_revision."""
MINOR_DECIMALS_DEFAULT = 2

_ID = re.compile(rf"(house:)?{ID_PATTERN}")


class ReportingServicer(reporting_pb2_grpc.ReportingServiceServicer):
    """The handlers. Errors are raised; the server's guard answers with them."""

    def __init__(self, queries: Queries, commits: Commits) -> None:
        self._queries = queries
        self._commits = commits

    async def GetBalance(  # noqa: N802 - the method's name in the proto
        self, request: pb.GetBalanceRequest, _: Any
    ) -> pb.Balance:
        """Return an account's balance, waiting for `min_revision` where it is given."""
        account_id = _id(request.account_id, "account_id")
        if request.HasField("min_revision"):
            return _balance(await self._visible(account_id, request.min_revision))
        found = await self._queries.balance(account_id)
        if found is None:
            await self._account_must_be_known(account_id)
            raise _not_yet(f"metering has not published a balance of account {account_id} yet")
        return _balance(found)

    async def _visible(self, account_id: str, revision: int) -> asyncpg.Record:
        found = None
        with self._commits.watching(account_id) as woken:
            try:
                async with asyncio.timeout(VISIBLE_WITHIN_S):
                    while True:
                        woken.clear()
                        found = await self._queries.balance(account_id)
                        if found is not None and found["account_revision"] >= revision:
                            return found
                        await woken.wait()
            except TimeoutError:
                pass
        shown = "nothing of it" if found is None else f"revision {found['account_revision']}"
        raise _not_yet(
            f"account {account_id} is not visible at revision {revision} after "
            f"{VISIBLE_WITHIN_S:g} s; reporting has {shown}"
        )

    async def GetConsumption(  # noqa: N802
        self, request: pb.GetConsumptionRequest, _: Any
    ) -> pb.Consumption:
        """Return what was charged in a period, a line a meter, epoch and account."""
        if bool(request.account_id) == bool(request.meter_id):
            raise _wrong("give account_id or meter_id, one of the two", "account_id")
        if request.from_ms >= request.to_ms:
            raise _wrong("from_ms must lie before to_ms (ms UTC)", "from_ms")
        if request.account_id:
            account_id = _id(request.account_id, "account_id")
            await self._account_must_be_known(account_id)
            column, key = "account_key", column_key("account", account_id)
        else:
            meter_id = _id(request.meter_id, "meter_id")
            if not await self._queries.meter_is_known(meter_id):
                raise InvalidInput(
                    Reason.METER_NOT_FOUND, f"there is no meter {meter_id}", field="meter_id"
                )
            column, key = "meter_key", column_key("meter", meter_id)
        lines = await self._queries.consumption(column, key, request.from_ms, request.to_ms)
        return _consumption(lines)

    async def ListAlarms(  # noqa: N802
        self, request: pb.ListAlarmsRequest, _: Any
    ) -> pb.ListAlarmsResponse:
        """Return decisions of metering, newest first."""
        size = page_size_of(request.page_size)
        site_id = _id(request.site_id, "site_id", required=False)
        account_id = _id(request.account_id, "account_id", required=False)
        listed = ("alarms", site_id, account_id)
        cursor = cursor_of(listed, request.page_token, (int, str))
        after = None
        if cursor is not None:
            decided_at_ms, alarm_id = cursor
            after = (int(decided_at_ms), _uuid(str(alarm_id), "page_token"))
        found = await self._queries.alarms(site_id, account_id, after, size + 1)
        more = len(found) > size
        last = found[size - 1] if more else None
        return pb.ListAlarmsResponse(
            alarms=[_alarm(row) for row in found[:size]],
            next_page_token=token_of(listed, (last.decided_at_ms, str(last.alarm_id)))
            if last
            else "",
        )

    async def ListMeters(  # noqa: N802
        self, request: pb.ListMetersRequest, _: Any
    ) -> pb.ListMetersResponse:
        """Return meters in order of their ids: seen, charged, wanted, reported."""
        size = page_size_of(request.page_size)
        site_id = _id(request.site_id, "site_id", required=False)
        listed = ("meters", site_id)
        cursor = cursor_of(listed, request.page_token, (str,))
        found = await self._queries.meters(site_id, str(cursor[0]) if cursor else "", size + 1)
        token = token_of(listed, (found[size - 1]["meter_id"],)) if len(found) > size else ""
        return pb.ListMetersResponse(
            meters=[_meter(line) for line in found[:size]], next_page_token=token
        )

    async def ListLostMeters(  # noqa: N802
        self, request: pb.ListLostMetersRequest, _: Any
    ) -> pb.ListLostMetersResponse:
        """Return devices that do not answer or that nobody registered, in order of their ids."""
        size = page_size_of(request.page_size)
        site_id = _id(request.site_id, "site_id", required=False)
        listed = ("lost", site_id)
        cursor = cursor_of(listed, request.page_token, (str,))
        found = await self._queries.lost(site_id, str(cursor[0]) if cursor else "", size + 1)
        token = token_of(listed, (found[size - 1]["device_id"],)) if len(found) > size else ""
        return pb.ListLostMetersResponse(
            devices=[_lost(line) for line in found[:size]], next_page_token=token
        )

    async def ExplainCutoff(  # noqa: N802
        self, request: pb.ExplainCutoffRequest, _: Any
    ) -> pb.CutoffExplanation:
        """Return what a cut followed from, and what was done about it."""
        alarm_id = _uuid(request.alarm_id, "alarm_id") if request.alarm_id else None
        account_id = _id(request.account_id, "account_id", required=alarm_id is None)
        cut = await self._queries.cut(account_id, alarm_id)
        if cut is None:
            if account_id:
                await self._account_must_be_known(account_id)
            whose = f" of account {account_id}" if account_id else ""
            asked = (
                f"there is no cut {alarm_id}{whose}"
                if alarm_id
                else f"account {account_id} was never cut off"
            )
            raise InvalidInput(
                Reason.NO_CUTOFF,
                asked,
                field="alarm_id" if alarm_id else "account_id",
            )
        return _explanation(await self._queries.cutoff(cut))

    async def _account_must_be_known(self, account_id: str) -> None:
        if not await self._queries.account_is_known(account_id):
            raise InvalidInput(
                Reason.ACCOUNT_NOT_FOUND, f"there is no account {account_id}", field="account_id"
            )


def _wrong(message: str, field: str) -> InvalidInput:
    return InvalidInput(Reason.INVALID_ARGUMENT, message, field=field)


def _not_yet(message: str) -> InvalidInput:
    """Not a fault of the input, but the one error family that carries a reason (UNAVAILABLE)."""
    return InvalidInput(Reason.NOT_YET_VISIBLE, f"{message}: try again in a moment")


def _id(value: str, field: str, *, required: bool = True) -> str:
    if not value and not required:
        return value
    if not _ID.fullmatch(value):
        raise _wrong(f"{field} must be an id ({ID_PATTERN}), not {value[:80]!r}", field)
    return value


def _uuid(value: str, field: str) -> UUID:
    try:
        return UUID(value)
    except ValueError as odd:
        raise _wrong(f"{field} must be a UUID, not {value[:80]!r}", field) from odd


def _minor_decimals(currency: str) -> int:
    known = CURRENCIES.get(currency)
    return known.minor_decimals if known else MINOR_DECIMALS_DEFAULT


def _balance(line: asyncpg.Record) -> pb.Balance:
    return pb.Balance(
        account_id=line["account_id"],
        currency=line["currency"],
        minor_decimals=_minor_decimals(line["currency"]),
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


def _consumption(lines: Iterable[asyncpg.Record]) -> pb.Consumption:
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
        raise _wrong(f"the sum is beyond {INT64_MAX}: ask for a shorter period", "from_ms")
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


def _alarm(row: AlarmRow) -> pb.Alarm:
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
    )


def _meter(line: asyncpg.Record) -> pb.MeterStatus:
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


def _lost(line: asyncpg.Record) -> pb.LostDevice:
    return pb.LostDevice(
        device_id=line["device_id"],
        status=line["status"],
        reason=line["reason"],
        since_ms=line["since_ms"],
        last_seen_ms=line["last_seen_ms"] or 0,
        quarantined_readings=line["quarantined_readings"],
    )


def _explanation(found: Cutoff) -> pb.CutoffExplanation:
    cut = found.cut
    explanation = pb.CutoffExplanation(
        decision=_alarm(cut),
        threshold_nano=cut.threshold_nano or 0,
        available_nano=cut.available_nano,
        minor_decimals=_minor_decimals(cut.currency),
        currency=cut.currency,
        intents=[_intent(intent) for intent in found.intents],
    )
    if (charge := found.charge) is not None:
        explanation.charge.CopyFrom(_charge_line(cut.meter_id or "", charge, found))
    if (tariff := found.tariff) is not None:
        explanation.tariff.CopyFrom(
            pb.TariffVersion(
                tariff_id=tariff.tariff_id,
                version=tariff.version,
                price_micro=tariff.price_micro,
                plan=tariff.plan,
                effective_at_ms=tariff.effective_at_ms,
            )
        )
    if (policy := found.policy) is not None:
        explanation.policy.CopyFrom(
            pb.PolicyVersion(
                policy_id=policy.policy_id,
                version=policy.version,
                alarm_1_nano=policy.alarm_1_nano,
                alarm_2_nano=policy.alarm_2_nano,
                overdraft_nano=policy.overdraft_nano,
                restore_nano=policy.restore_nano,
            )
        )
    return explanation


def _charge_line(meter_id: str, charge: ChargeRow, found: Cutoff) -> pb.ChargeLine:
    return pb.ChargeLine(
        meter_id=meter_id,
        epoch=charge.epoch,
        sequence=charge.sequence,
        from_reading=pb.Reading(
            reading_id=str(charge.from_reading_id or ""),
            device_time_ms=charge.from_time_ms,
            received_at_ms=found.from_received_at_ms,
            register_milli=charge.from_register_milli,
            quality=charge.from_quality,
        ),
        to_reading=pb.Reading(
            reading_id=str(charge.to_reading_id or ""),
            device_time_ms=charge.to_time_ms,
            received_at_ms=charge.to_received_at_ms,
            register_milli=charge.to_register_milli,
            quality=charge.to_quality,
        ),
        ratio=charge.ratio,
        energy_milli=charge.energy_milli,
        price_micro=charge.price_micro,
        amount_nano=charge.amount_nano,
        account_charged_total_nano=charge.account_charged_total_nano,
        account_credited_total_nano=charge.account_credited_total_nano,
        account_sequence=charge.account_sequence,
        lines=[_price_line(line) for line in found.lines],
    )


def _price_line(line: PriceLineRow) -> pb.PriceLine:
    return pb.PriceLine(
        version=line.version,
        rate=line.rate,
        basis=line.basis,
        period=line.period,
        energy_milli=line.energy_milli,
        total_milli=line.total_milli,
        rate_nano=line.rate_nano,
        surcharge_nano=line.surcharge_nano,
        ladder_nano=line.ladder_nano,
        tax_nano=line.tax_nano,
        base_milli=line.base_milli,
        days=line.days,
        days_of=line.days_of,
    )


def _intent(intent: CutIntent) -> pb.Intent:
    return pb.Intent(
        meter_id=intent.meter_id,
        epoch=intent.epoch,
        version_offset=intent.version_offset,
        wanted="open",
        mode=intent.mode,
        cause=intent.cause,
        send_before_ms=intent.send_before_ms,
        decided_at_ms=intent.decided_at_ms,
        attempts=[_attempt(step) for step in intent.steps],
    )


def _attempt(step: CommandOutcomeRow) -> pb.Attempt:
    return pb.Attempt(
        attempt=step.attempt,
        result=step.result,
        detail=step.detail,
        decided_at_ms=step.decided_at_ms,
        commanded_at_ms=step.commanded_at_ms,
        completed_at_ms=step.completed_at_ms,
        read_back_position=step.read_back_position or "",
        read_back_began_at_ms=step.read_back_began_at_ms,
    )
