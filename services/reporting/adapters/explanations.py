"""Explanations: what a charge, a balance or a cut-off followed from, enough to compute it again.

Each is put together from rows that never change; docs/explain.md says how to compute with it.
"""

from collections.abc import Iterable
from uuid import UUID

import asyncpg
import orjson

from services.common.kernel import names
from services.common.kernel.ids import column_key
from services.common.kernel.values import value_class
from services.reporting.adapters import messages
from services.reporting.adapters.queries import Queries
from services.reporting.domain.explain import (
    CUT,
    FORCED,
    SILENT,
    BookEvent,
    Credit,
    CutIntent,
    credits_of,
    orders_of,
)
from services.reporting.domain.projections import (
    CHARGE_KINDS,
    CLOSING,
    FEE,
    RESPLIT,
    ROLLOVER,
    USAGE,
)
from services.reporting.domain.rows import (
    AlarmRow,
    ChargeRow,
    CommandOutcomeRow,
    NoticeRow,
    PriceLineRow,
)
from wattvend.reporting.v1 import reporting_pb2 as pb

_READ = tuple(kind for kind in CHARGE_KINDS.values() if kind not in {CLOSING, FEE})
"""Kinds of charges that end with a reading."""


@value_class
class BalanceState:
    """An account's totals as of `account_sequence`. `held_nano`: None where nothing tells it."""

    account_id: str
    currency: str
    account_sequence: int
    book: tuple[int, int]
    credited_nano: int
    charged_nano: int
    held_nano: int | None
    level: str


async def explain_charge(queries: Queries, charge: ChargeRow) -> pb.ChargeExplanation:
    """Return what a charge was computed from. Absent: what retention took, or is not here yet."""
    told = pb.ChargeExplanation(minor_decimals=messages.minor_decimals(charge.currency))
    lines = await queries.price_lines(charge)
    versions = {charge.tariff_version, *(line.version for line in lines)}
    if charge.kind == RESPLIT:
        corrected = await queries.behind(charge, [USAGE])
        until = await queries.behind(charge, _READ)
        if corrected is not None and until is not None:
            told.corrects_sequence = corrected.sequence
            told.until_reading.CopyFrom(_to_reading(until))
            versions.update(line.version for line in await queries.price_lines(corrected))
    owners = await queries.names(charge)
    if charge.kind == ROLLOVER:
        most_milli = await queries.register_max_milli(owners[0], charge.epoch)
        if most_milli is not None:
            told.register_max_milli = most_milli
    tariffs = await queries.tariff_versions(charge.tariff_id, versions)
    told.tariffs.extend(map(messages.tariff, tariffs))
    policy = await queries.policy_version(charge.policy_id, charge.policy_version)
    if policy is not None:
        told.policy.CopyFrom(messages.policy(policy))
    received_at_ms = await queries.received_at_ms(charge)
    told.charge.CopyFrom(_charge(charge, owners, lines, received_at_ms))
    return told


async def explain_cutoff(queries: Queries, cut: AlarmRow) -> pb.CutoffExplanation:
    """Return what a decision on a cut followed from, and what was done about it."""
    policy = await queries.policy_version(cut.policy_id, cut.policy_version)
    told = pb.CutoffExplanation(
        decision=messages.alarm(cut),
        threshold_nano=cut.threshold_nano or 0,
        available_nano=cut.available_nano,
        minor_decimals=messages.minor_decimals(cut.currency),
        currency=cut.currency,
        refusals=map(messages.alarm, await queries.refusals(cut)),
    )
    if cut.kind == CUT:
        told.intents.extend(map(_intent, await queries.intents(cut, policy)))
    await _add_grounds(queries, cut, told)
    if policy is not None:
        told.policy.CopyFrom(messages.policy(policy))
    charge = None
    if cut.meter_id is not None and cut.charge_sequence is not None:
        meter_key = column_key("meter", cut.meter_id)
        charge = await queries.charge(meter_key, cut.charge_epoch, cut.charge_sequence)
    if charge is not None:
        of_charge = await explain_charge(queries, charge)
        told.charge.CopyFrom(of_charge.charge)
        told.tariffs.extend(of_charge.tariffs)
        for tariff in of_charge.tariffs:
            if tariff.version == charge.tariff_version:
                told.tariff.CopyFrom(tariff)
    elif cut.tariff_id is not None and cut.tariff_version is not None:
        for row in await queries.tariff_versions(cut.tariff_id, [cut.tariff_version]):
            told.tariff.CopyFrom(messages.tariff(row))
    return told


async def _add_grounds(queries: Queries, cut: AlarmRow, told: pb.CutoffExplanation) -> None:
    """Add what kept the cut off, or let it be: orders, a silence, the notice."""
    events = await queries.book_events(f"account-{cut.account_id}")
    told.orders.extend(map(_order, orders_of(events, (cut.book_epoch, cut.account_revision))))
    told.orders.extend(await _forced_orders(queries, cut))
    silence = await queries.silence(cut) if cut.reason == SILENT else None
    if silence is not None:
        told.silent_alarm = names.ALARM.name(str(silence.alarm_id))
        if silence.silent_since_ms is not None:
            told.silent_since_ms = silence.silent_since_ms
    notice = await queries.notice(UUID(cut.notice_id)) if cut.notice_id else None
    if notice is not None:
        told.notice.CopyFrom(_notice(notice))


async def _forced_orders(queries: Queries, cut: AlarmRow) -> list[pb.AccountOrder]:
    """Return the order that held each relay, with its event where the ledger has it."""
    orders: list[pb.AccountOrder] = []
    for cited in orjson.loads(cut.forced_orders or "[]"):
        meter_id, book = cited["meter_id"], (cited["book_epoch"], cited["revision"])
        events = await queries.book_events(f"meter-{meter_id}")
        newest = orders_of(events, book, (FORCED,))
        order = _order(newest[0]) if newest else pb.AccountOrder(type=FORCED)
        order.meter, order.position = names.METER.name(meter_id), cited["position"]
        orders.append(order)
    return orders


async def explain_balance(queries: Queries, state: BalanceState) -> pb.BalanceExplanation:
    """Return what a balance consists of: every credit, and every charge by its sequences."""
    credited = credits_of(await queries.book_events(f"account-{state.account_id}"), state.book)
    spans = await queries.charged_spans(
        column_key("account", state.account_id), state.account_sequence
    )
    told = pb.BalanceExplanation(
        account=names.ACCOUNT.name_if(state.account_id),
        currency=state.currency,
        minor_decimals=messages.minor_decimals(state.currency),
        account_sequence=state.account_sequence,
        book_epoch=state.book[0],
        account_revision=state.book[1],
        credited_nano=state.credited_nano,
        charged_nano=state.charged_nano,
        level=state.level,
        credits=map(_credit, credited),
        charged=[_span(line) for line in spans],
        charged_before_nano=state.charged_nano - sum(int(line["amount_nano"]) for line in spans),
    )
    if state.held_nano is not None:
        told.held_nano = state.held_nano
        told.available_nano = state.credited_nano - state.charged_nano - state.held_nano
    return told


async def balance_state(
    queries: Queries, account_id: str, sequence: int | None
) -> BalanceState | None:
    """Return an account's totals as of a sequence, or of now; None: there is no balance yet.

    A sequence at which credit changed is told as of the charge before it, but for the newest.
    """
    newest = await queries.balance(account_id)
    if newest is None:
        return None
    charge = await queries.charge_of_account(column_key("account", account_id), sequence)
    currency = newest["currency"]
    if sequence is None or sequence >= newest["account_sequence"]:
        book = (newest["book_epoch"], newest["account_revision"])
        if charge is not None:  # charges and balances come by two topics: one may be ahead
            book = max(book, (charge.book_epoch, charge.account_revision))
        return BalanceState(
            account_id,
            currency,
            newest["account_sequence"],
            book,
            newest["credited_nano"],
            newest["charged_nano"],
            newest["held_nano"],
            newest["level"],
        )
    if charge is None:
        return BalanceState(account_id, currency, 0, (0, -1), 0, 0, None, "")
    return BalanceState(
        account_id,
        currency,
        charge.account_sequence,
        (charge.book_epoch, charge.account_revision),
        charge.account_credited_total_nano,
        charge.account_charged_total_nano,
        None,
        "",
    )


def _charge(
    charge: ChargeRow,
    owners: tuple[str, str],
    lines: Iterable[PriceLineRow],
    from_received_at_ms: int,
) -> pb.ChargeLine:
    meter_id, account_id = owners
    return pb.ChargeLine(
        meter=names.METER.name_if(meter_id),
        epoch=charge.epoch,
        sequence=charge.sequence,
        kind=charge.kind,
        from_reading=pb.Reading(
            reading_id=str(charge.from_reading_id or ""),
            device_time_ms=charge.from_time_ms,
            received_at_ms=from_received_at_ms,
            register_milli=charge.from_register_milli,
            quality=charge.from_quality,
            rate_registers_milli=orjson.loads(charge.from_rates_milli or "[]"),
        ),
        to_reading=_to_reading(charge),
        ratio=charge.ratio,
        energy_milli=charge.energy_milli,
        price_micro=charge.price_micro,
        amount_nano=charge.amount_nano,
        meter_energy_total_milli=charge.meter_energy_total_milli,
        account=names.ACCOUNT.name_if(account_id),
        account_sequence=charge.account_sequence,
        account_revision=charge.account_revision,
        book_epoch=charge.book_epoch,
        account_charged_total_nano=charge.account_charged_total_nano,
        account_credited_total_nano=charge.account_credited_total_nano,
        tariff=names.TARIFF.name_if(charge.tariff_id),
        tariff_version=charge.tariff_version,
        policy=names.POLICY.name_if(charge.policy_id),
        policy_version=charge.policy_version,
        legal_entity=names.LEGAL_ENTITY.name_if(charge.legal_entity),
        currency=charge.currency,
        commodity=charge.commodity,
        shard=charge.shard,
        log_offset=charge.log_offset,
        lines=map(_price_line, lines),
    )


def _to_reading(charge: ChargeRow) -> pb.Reading:
    return pb.Reading(
        reading_id=str(charge.to_reading_id or ""),
        device_time_ms=charge.to_time_ms,
        received_at_ms=charge.to_received_at_ms,
        register_milli=charge.to_register_milli,
        quality=charge.to_quality,
        rate_registers_milli=orjson.loads(charge.to_rates_milli or "[]"),
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


def _credit(credit: Credit) -> pb.Credit:
    event = credit.event
    return pb.Credit(
        type=event.type,
        event_id=str(event.event_id),
        receipt=names.RECEIPT.name_if(event.receipt_id),
        book_epoch=event.book_epoch,
        revision=event.revision,
        added_nano=credit.added_nano,
        credited_nano=credit.credited_nano,
        occurred_at_ms=event.occurred_at_ms,
    )


def _order(event: BookEvent) -> pb.AccountOrder:
    return pb.AccountOrder(
        type=event.type,
        event_id=str(event.event_id),
        book_epoch=event.book_epoch,
        revision=event.revision,
        occurred_at_ms=event.occurred_at_ms,
        until_ms=event.until_ms,
        notice_id=event.notice_id,
        outcome=event.outcome,
    )


def _notice(row: NoticeRow) -> pb.Notice:
    return pb.Notice(
        notice_id=str(row.notice_id),
        kind=row.kind,
        decided_at_ms=row.decided_at_ms,
        cut_not_before_ms=row.cut_not_before_ms,
        available_nano=row.available_nano,
        threshold_nano=row.threshold_nano,
        policy_version=row.policy_version or 0,
    )


def _span(line: asyncpg.Record) -> pb.ChargedSpan:
    whole = {name: int(line[name]) for name in ("energy_milli", "amount_nano")}
    fields = {**dict(line), **whole}
    return pb.ChargedSpan(meter=names.METER.name_if(fields.pop("meter_id")), **fields)


def _intent(intent: CutIntent) -> pb.Intent:
    return pb.Intent(
        meter=names.METER.name_if(intent.meter_id),
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
