"""Which record becomes which rows: one table of pure functions, by topic and subject.

Every topic that is read is listed with every subject it may hold, also those that leave no row,
so that a new subject stops the service instead of being lost.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from services.common.kernel.errors import InvalidInput
from services.common.kernel.frames import (
    FEE_RATE,
    KIND_CLOSING,
    KIND_FEE,
    KIND_RESPLIT,
    KIND_ROLLOVER,
    KIND_USAGE,
    NO_RATE,
    ChargeFrame,
)
from services.common.kernel.profiles import RATE_NAMES
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.tariffs.plan import COMPONENTS_MAX
from services.reporting.domain.rows import (
    AccountLevelRow,
    AccountRow,
    AccountTotalsRow,
    AlarmRow,
    ChargeRow,
    CommandOutcomeRow,
    DeviceStatusRow,
    GatewayRow,
    Json,
    LedgerRow,
    MeterRow,
    NoticeRow,
    PolicyVersionRow,
    PriceLineRow,
    ReceiptRow,
    RelayIntentRow,
    RelayStateRow,
    Row,
    SitePlaceRow,
    SiteRow,
    TariffVersionRow,
)

USAGE, CLOSING, RESPLIT, ROLLOVER, FEE = "usage", "closing", "re-split", "rollover", "fee"
CHARGE_KINDS = {
    KIND_USAGE: USAGE,
    KIND_CLOSING: CLOSING,
    KIND_RESPLIT: RESPLIT,
    KIND_ROLLOVER: ROLLOVER,
    KIND_FEE: FEE,
}
FEES = {FEE_RATE + number: f"fee-{number + 1}" for number in range(COMPONENTS_MAX)}
RATES = {**dict(enumerate(RATE_NAMES)), **FEES, NO_RATE: "none"}
HOUSE_REVISION = -1
"""The account revision of charges of a house account: no book speaks of it, it has no balance."""
_NO_READING = UUID(int=0)
_NAMED = {
    "tariff_id": "tariff_name",
    "policy_id": "policy_name",
    "legal_entity": "legal_entity_name",
    "currency": "currency_name",
    "commodity": "commodity_name",
}
"""Column of a charge → column of the frame that holds its index into the frame's names."""


@value_class
class Record:
    """One record of the bus, decoded.

    `value`: the Avro record of `subject`; `event`: for a ledger-event, the record of its data.
    """

    topic: str
    offset: int
    subject: str
    value: Mapping[str, Any]
    event: Mapping[str, Any] | None = None


Projection = Callable[[Record], Iterable[Row]]
R = TypeVar("R", bound=Row)


def project(record: Record) -> Iterable[Row]:
    """Return the rows of a record. Raises InvalidInput where it cannot be one of ours."""
    projection = PROJECTIONS.get((record.topic, record.subject))
    if projection is None:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"a {record.subject} on {record.topic}, where reporting knows none",
            field="schema",
        )
    for part in (record.value, record.event or {}):
        # PostgreSQL's text cannot hold it; no id or name of ours has one.
        if any(isinstance(value, str) and "\x00" in value for value in part.values()):
            raise InvalidInput(Reason.INVALID_ARGUMENT, f"a {record.subject} with a NUL in a text")
    try:
        return tuple(projection(record))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as odd:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT, f"a {record.subject} that makes no row: {odd!r}"
        ) from odd


def _same(row: type[R], value: Mapping[str, Any], /, **other: Any) -> R:
    """Return a row whose columns have the names of the value's fields, but for `other`."""
    fields: Iterable[str] = row._fields
    return row(*(other[name] if name in other else value[name] for name in fields))


def _reading(text: str | None) -> UUID | None:
    identity = UUID(text) if text else _NO_READING
    return None if identity == _NO_READING else identity


def _nothing(_: Record) -> Iterable[Row]:
    return ()


def _copied(kind: type[Row]) -> Projection:
    def projection(record: Record) -> Iterable[Row]:
        yield _same(kind, record.value)

    return projection


def _charges(record: Record) -> Iterable[Row]:
    """Column by column, because a frame holds hundreds of charges."""
    frame = ChargeFrame.from_record(record.value)
    if any("\x00" in name for name in frame.names):
        raise ValueError("a name with a NUL")
    if not (frame.rows["from_quality"].all() and frame.rows["to_quality"].all()):
        raise ValueError("a quality of NUL")
    count = len(frame.rows)
    columns: dict[str, list[Any]] = {
        name: frame.rows[name].tolist() for name in frame.rows.dtype.names or ()
    }
    columns |= {
        "kind": [CHARGE_KINDS[kind] for kind in columns["kind"]],
        "from_reading_id": [_reading_of(identity) for identity in columns["from_reading_id"]],
        "to_reading_id": [_reading_of(identity) for identity in columns["to_reading_id"]],
        "from_quality": [chr(code) for code in columns["from_quality"]],
        "to_quality": [chr(code) for code in columns["to_quality"]],
        "from_rates_milli": list(map(_registers, columns["from_rates_milli"])),
        "to_rates_milli": list(map(_registers, columns["to_rates_milli"])),
        "shard": [frame.shard] * count,
        "log_offset": [frame.log_offset] * count,
    }
    for column, name in _NAMED.items():
        columns[column] = [frame.names[index] for index in columns[name]]
    charges = [
        ChargeRow(*values)
        for values in zip(*(columns[field] for field in ChargeRow._fields), strict=True)
    ]
    totals = (_totals(charge) for charge in charges if _has_balance(charge))
    return [*charges, *totals, *_price_lines(frame, charges)]


def _price_lines(frame: ChargeFrame, charges: Sequence[ChargeRow]) -> Iterator[Row]:
    numbers: Counter[int] = Counter()
    for charge, version, rate, *rest in frame.lines.tolist():
        whose = charges[charge]
        identity = (whose.meter_key, whose.epoch, whose.sequence, numbers[charge])
        numbers[charge] += 1
        yield PriceLineRow(*identity, version, RATES[rate], *rest)


def _registers(milli: list[int]) -> str | None:
    """Return registers of rates as a JSON array; None where all are absent."""
    return None if max(milli) < 0 else "[" + ",".join(map(str, milli)) + "]"


def _reading_of(identity: bytes) -> UUID | None:
    return UUID(bytes=identity) if any(identity) else None


def _has_balance(charge: ChargeRow) -> bool:
    return charge.account_revision != HOUSE_REVISION


def _totals(charge: ChargeRow) -> AccountTotalsRow:
    return AccountTotalsRow(
        charge.account_key,
        charge.account_credited_total_nano,
        charge.account_charged_total_nano,
        charge.account_sequence,
        charge.log_offset,
        # A closing charge has no reading of its own that was received.
        charge.to_received_at_ms or charge.to_time_ms,
    )


def _balance(record: Record) -> Iterator[Row]:
    yield _same(AccountLevelRow, record.value)
    yield _same(AccountTotalsRow, record.value)


def _alarm(record: Record) -> Iterator[Row]:
    value = record.value
    yield _same(
        AlarmRow,
        value,
        alarm_id=UUID(value["alarm_id"]),
        from_reading_id=_reading(value["from_reading_id"]),
        to_reading_id=_reading(value["to_reading_id"]),
    )


def _notice(record: Record) -> Iterator[Row]:
    value = record.value
    yield _same(
        NoticeRow,
        value,
        notice_id=UUID(value["notice_id"]),
        from_reading_id=_reading(value["from_reading_id"]),
        to_reading_id=_reading(value["to_reading_id"]),
    )


def _intent(record: Record) -> Iterator[Row]:
    value = record.value
    yield _same(
        RelayIntentRow,
        value,
        from_reading_id=_reading(value["from_reading_id"]),
        to_reading_id=_reading(value["to_reading_id"]),
    )


def _relay_state(record: Record) -> Iterator[Row]:
    value = record.value
    yield _same(RelayStateRow, value, reported_by=value["by"], topic_offset=record.offset)


def _device_status(record: Record) -> Iterator[Row]:
    yield _same(DeviceStatusRow, record.value, topic_offset=record.offset)


def _outcome(record: Record) -> Iterator[Row]:
    yield _same(CommandOutcomeRow, record.value, outcome_id=UUID(record.value["outcome_id"]))


def _ledger(record: Record) -> Iterator[Row]:
    value, event = record.value, record.event
    assert event is not None, "whoever decodes a ledger-event decodes its data"
    if value["type"] == "usage-posted":
        # Metering's own row, up to 45 kB of it, says nothing that can be asked here.
        event = {name: field for name, field in event.items() if name != "row"}
    yield _same(
        LedgerRow,
        value,
        store_position=value["position"],
        event_id=UUID(value["event_id"]),
        data=Json(json.dumps(event, default=_hexadecimal, sort_keys=True, ensure_ascii=False)),
    )
    book = {"book_epoch": value["book_epoch"], "revision": value["revision"]}
    happened_at_ms = event["occurred_at_ms"]
    if value["type"] == "tariff-published":
        yield _same(TariffVersionRow, event, published_at_ms=happened_at_ms, **book)
    elif value["type"] == "policy-published":
        yield _same(PolicyVersionRow, event, published_at_ms=happened_at_ms, **book)
    elif value["type"] == "site-placed":
        yield _same(SitePlaceRow, event, **book)
    elif value["type"] == "credit-sold":
        yield _same(
            ReceiptRow,
            event,
            receipt_id=UUID(event["receipt_id"]),
            caller=_behind(value),
            recovered_emergency_minor=event["recovered_emergency_minor"] or 0,
            recovered_debt_minor=event["recovered_debt_minor"] or 0,
            fee_minor=event["fee_minor"] or 0,
            sold_at_ms=happened_at_ms,
            **book,
        )


def _behind(ledger_event: Mapping[str, Any]) -> str:
    """Return the caller behind an event: of what vending asked of itself, who began it."""
    meta = ledger_event["meta"]
    origin = json.loads(meta).get("origin", {}) if meta else {}
    return str(origin.get("caller") or ledger_event["caller"])


def _hexadecimal(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} in an event has no JSON form")


PROJECTIONS: Mapping[tuple[str, str], Projection] = {
    ("registry", "site-fact"): _copied(SiteRow),
    ("registry", "gateway-fact"): _copied(GatewayRow),
    ("registry", "meter-fact"): _copied(MeterRow),
    ("registry", "account-fact"): _copied(AccountRow),
    # Versions are history, and history never comes from a compacted topic: see ledger.
    ("registry", "tariff-fact"): _nothing,
    ("registry", "policy-fact"): _nothing,
    ("charges", "charge-frame"): _charges,
    ("balances", "balance"): _balance,
    ("alarms", "alarm"): _alarm,
    ("notices", "notice"): _notice,
    ("relay-intents", "relay-intent"): _intent,
    ("relay-states", "relay-state"): _relay_state,
    ("command-outcomes", "command-outcome"): _outcome,
    ("device-status", "device-status"): _device_status,
    ("ledger", "ledger-event"): _ledger,
    ("ledger", "ledger-checkpoint"): _nothing,
}

TOPICS = tuple(dict.fromkeys(topic for topic, _ in PROJECTIONS))
"""What reporting reads, in the order in which the tables refer to each other."""
