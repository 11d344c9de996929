"""The rows of the read models, and the one rule by which they change.

A row type is a table: its fields are the columns in order, adapters/sql/ creates them, and a test
holds the two together. `TABLES` says what identifies a row and which of its columns are its
version. Of the rows with one key the one with the highest version stands; the first of equal ones.
A table without version columns is history: a row never changes, a repeat of it is the same row.
So the order of arrival, and how often something arrives, make no difference.

Types: int → bigint, str → text, bool → boolean, UUID → uuid, Json → jsonb; `| None` may be null.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, NewType
from uuid import UUID

Json = NewType("Json", str)
"""The text of a JSON document."""


class SiteRow(NamedTuple):
    site_id: str
    display_name: str
    zone: str
    currency: str
    ledger_decimals: int
    minor_decimals: int
    legal_entity: str
    cuts_held: bool
    cuts_per_minute: int
    book_epoch: int
    revision: int


class SitePlaceRow(NamedTuple):
    site_id: str
    parent_site_id: str | None
    book_epoch: int
    revision: int


class GatewayRow(NamedTuple):
    gateway_id: str
    site_id: str
    line_id: str
    protocol: str
    address: str
    book_epoch: int
    revision: int


class MeterRow(NamedTuple):
    meter_id: str
    meter_key: int
    serial: str
    site_id: str
    gateway_id: str
    line_id: str
    unit: int
    profile: str
    commodity: str
    ratio: int
    max_power_w: int | None
    epoch: int
    account_id: str
    account_key: int
    is_house: bool
    shard: int
    currency: str
    legal_entity: str
    opening_register_milli: int | None
    book_epoch: int
    revision: int
    register_max_milli: int | None
    forced: str | None
    resolves_reading_id: str | None
    resolution: str | None


class AccountRow(NamedTuple):
    account_id: str
    account_key: int
    shard: int
    site_id: str
    subject_id: str | None
    status: str
    currency: str
    legal_entity: str
    commodity: str
    tariff_id: str
    policy_id: str
    credited_nano: int
    held_nano: int
    book_epoch: int
    revision: int
    keep_power_until_ms: int | None
    promise_until_ms: int | None
    notice_id: str | None
    notice_outcome: str | None


class TariffVersionRow(NamedTuple):
    tariff_id: str
    version: int
    kind: str
    commodity: str
    currency: str
    legal_entity: str
    price_micro: int
    effective_at_ms: int
    published_at_ms: int
    book_epoch: int
    revision: int
    plan: str | None


class PolicyVersionRow(NamedTuple):
    policy_id: str
    version: int
    currency: str
    alarm_1_nano: int
    alarm_2_nano: int
    overdraft_nano: int
    restore_nano: int
    lease_ms: int
    max_evidence_age_ms: int
    published_at_ms: int
    book_epoch: int
    revision: int
    emergency_nano: int | None
    rules: str | None


class ChargeRow(NamedTuple):
    meter_key: int
    epoch: int
    sequence: int
    account_key: int
    account_sequence: int
    account_revision: int
    book_epoch: int
    kind: str
    from_reading_id: UUID | None
    from_time_ms: int
    from_register_milli: int
    from_quality: str
    to_reading_id: UUID | None
    to_time_ms: int
    to_received_at_ms: int
    to_register_milli: int
    to_quality: str
    ratio: int
    energy_milli: int
    price_micro: int
    amount_nano: int
    meter_energy_total_milli: int
    account_charged_total_nano: int
    account_credited_total_nano: int
    tariff_id: str
    tariff_version: int
    policy_id: str
    policy_version: int
    legal_entity: str
    currency: str
    commodity: str
    shard: int
    log_offset: int
    from_rates_milli: str | None
    to_rates_milli: str | None


class PriceLineRow(NamedTuple):
    """What a charge consists of, where one price does not tell it."""

    meter_key: int
    epoch: int
    sequence: int
    line: int
    version: int
    rate: str
    basis: int
    period: int
    energy_milli: int
    total_milli: int
    rate_nano: int
    surcharge_nano: int
    ladder_nano: int
    tax_nano: int
    base_milli: int
    days: int
    days_of: int


class AccountTotalsRow(NamedTuple):
    """What an account was credited and charged as of one account sequence."""

    account_key: int
    credited_nano: int
    charged_nano: int
    account_sequence: int
    log_offset: int
    as_of_ms: int


class AccountLevelRow(NamedTuple):
    """What metering last published of an account beside its totals."""

    account_id: str
    account_key: int
    shard: int
    site_id: str
    currency: str
    legal_entity: str
    commodity: str
    held_nano: int
    level: str
    frozen: bool
    account_revision: int
    book_epoch: int
    as_of_ms: int
    log_offset: int


class AlarmRow(NamedTuple):
    alarm_id: UUID
    kind: str
    reason: str
    account_id: str
    site_id: str
    meter_id: str | None
    available_nano: int
    threshold_nano: int | None
    account_sequence: int
    account_revision: int
    book_epoch: int
    policy_id: str | None
    policy_version: int | None
    tariff_id: str | None
    tariff_version: int | None
    charge_epoch: int | None
    charge_sequence: int | None
    from_reading_id: UUID | None
    to_reading_id: UUID | None
    reading_received_at_ms: int | None
    level_before: str
    level_after: str
    currency: str
    legal_entity: str
    commodity: str
    intent_epoch: int | None
    intent_offset: int | None
    decided_at_ms: int
    log_offset: int
    register_milli: int | None
    device_time_ms: int | None
    last_register_milli: int | None
    last_time_ms: int | None
    bound_milli: int | None
    notice_id: str | None
    notice_outcome: str | None
    silent_since_ms: int | None
    meter_epoch: int | None
    arrears_since_ms: int | None
    forced_orders: str | None
    reading_began_at_ms: int | None


class NoticeRow(NamedTuple):
    notice_id: UUID
    kind: str
    account_id: str
    site_id: str
    available_nano: int
    threshold_nano: int
    cut_not_before_ms: int
    account_sequence: int
    account_revision: int
    book_epoch: int
    policy_id: str | None
    policy_version: int | None
    tariff_id: str | None
    tariff_version: int | None
    charge_epoch: int | None
    charge_sequence: int | None
    from_reading_id: UUID | None
    to_reading_id: UUID | None
    reading_received_at_ms: int | None
    currency: str
    legal_entity: str
    commodity: str
    decided_at_ms: int
    log_offset: int


class RelayIntentRow(NamedTuple):
    meter_id: str
    meter_key: int
    line_id: str
    epoch: int
    version_offset: int
    shard: int
    wanted: str
    mode: str
    cause: str
    send_before_ms: int | None
    account_id: str
    site_id: str
    cause_meter_id: str | None
    available_nano: int
    threshold_nano: int | None
    account_sequence: int
    account_revision: int
    book_epoch: int
    policy_id: str | None
    policy_version: int | None
    tariff_id: str | None
    tariff_version: int | None
    charge_epoch: int | None
    charge_sequence: int | None
    from_reading_id: UUID | None
    to_reading_id: UUID | None
    reading_received_at_ms: int | None
    currency: str
    legal_entity: str
    commodity: str
    decided_at_ms: int
    notice_id: str | None
    notice_outcome: str | None
    arrears_since_ms: int | None


class RelayStateRow(NamedTuple):
    meter_id: str
    meter_key: int
    site_id: str
    line_id: str
    epoch: int
    position: str
    closed_mask: int
    began_at_ms: int
    received_at_ms: int
    device_time_ms: int | None
    reported_by: str
    request_id: str | None
    worker: str
    topic_offset: int


class CommandOutcomeRow(NamedTuple):
    outcome_id: UUID
    meter_id: str
    site_id: str
    account_id: str
    line_id: str
    intent_epoch: int
    intent_offset: int
    wanted: str
    mode: str
    cause: str
    send_before_ms: int | None
    intent_decided_at_ms: int
    attempt: int
    result: str
    detail: str
    request_id: str | None
    commanded_at_ms: int | None
    completed_at_ms: int | None
    read_back_position: str | None
    read_back_began_at_ms: int | None
    decided_at_ms: int
    worker: str


class DeviceStatusRow(NamedTuple):
    device_id: str
    kind: str
    site_id: str | None
    line_id: str | None
    status: str
    reason: str
    since_ms: int
    last_seen_ms: int | None
    quarantined_readings: int
    worker: str
    topic_offset: int
    clock_tended_at_ms: int | None
    clock_result: str | None
    clock_ahead_ms: int | None


class LedgerRow(NamedTuple):
    stream: str
    book_epoch: int
    revision: int
    store_position: int
    event_id: UUID
    type: str
    data: Json
    occurred_at_ms: int
    caller: str
    request_id: str


class ReceiptRow(NamedTuple):
    receipt_id: UUID
    account_id: str
    amount_minor: int
    amount_nano: int
    credited_nano: int
    method: str
    currency: str
    legal_entity: str
    caller: str
    request_id: str
    sold_at_ms: int
    book_epoch: int
    revision: int
    recovered_emergency_minor: int
    recovered_debt_minor: int
    fee_minor: int


Row = (
    SiteRow
    | SitePlaceRow
    | GatewayRow
    | MeterRow
    | AccountRow
    | TariffVersionRow
    | PolicyVersionRow
    | ChargeRow
    | PriceLineRow
    | AccountTotalsRow
    | AccountLevelRow
    | AlarmRow
    | NoticeRow
    | RelayIntentRow
    | RelayStateRow
    | CommandOutcomeRow
    | DeviceStatusRow
    | LedgerRow
    | ReceiptRow
)


@dataclass(frozen=True)
class Table:
    """A table: its name, its row type, its key and its version, both by column names."""

    name: str
    row: type[Row]
    key: tuple[str, ...]
    version: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return self.row._fields

    @cached_property
    def _key_at(self) -> tuple[int, ...]:
        return tuple(self.columns.index(name) for name in self.key)

    @cached_property
    def _version_at(self) -> tuple[int, ...]:
        return tuple(self.columns.index(name) for name in self.version)

    def key_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[at] for at in self._key_at)

    def version_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[at] for at in self._version_at)


_BOOK = ("book_epoch", "revision")

_ALL = (
    Table("sites", SiteRow, ("site_id",), _BOOK),
    Table("site_places", SitePlaceRow, ("site_id",), _BOOK),
    Table("gateways", GatewayRow, ("gateway_id",), _BOOK),
    Table("meters", MeterRow, ("meter_id",), _BOOK),
    Table("accounts", AccountRow, ("account_id",), _BOOK),
    # A store restored to an earlier point may publish a version number once more.
    Table("tariff_versions", TariffVersionRow, ("tariff_id", "version"), _BOOK),
    Table("policy_versions", PolicyVersionRow, ("policy_id", "version"), _BOOK),
    Table("charges", ChargeRow, ("meter_key", "epoch", "sequence")),
    Table("price_lines", PriceLineRow, ("meter_key", "epoch", "sequence", "line")),
    # Charges and balances both tell totals, in whatever order; an account's shard is for life, so
    # offsets of its log order what both say. The instants differ at one sequence: the later stands.
    Table(
        "account_totals",
        AccountTotalsRow,
        ("account_key",),
        ("log_offset", "account_sequence", "as_of_ms"),
    ),
    # A policy may change a level at the same sequence and revision: only the offset orders these.
    Table("account_levels", AccountLevelRow, ("account_id",), ("log_offset",)),
    Table("alarms", AlarmRow, ("alarm_id",)),
    Table("notices", NoticeRow, ("notice_id",)),
    Table("relay_intents", RelayIntentRow, ("meter_id",), ("epoch", "version_offset")),
    # ingest numbers nothing: newest is what stands last in a partition, as compaction keeps it.
    Table("relay_states", RelayStateRow, ("meter_id",), ("topic_offset",)),
    # A device that moves to another line has records in two partitions, as an unknown one may have.
    Table("device_status", DeviceStatusRow, ("device_id",), ("since_ms", "topic_offset")),
    Table("command_outcomes", CommandOutcomeRow, ("outcome_id",)),
    Table("ledger", LedgerRow, ("stream", "book_epoch", "revision")),
    Table("receipts", ReceiptRow, ("receipt_id",), _BOOK),
)

TABLES: Mapping[type[Row], Table] = {table.row: table for table in _ALL}


def newest(rows: Iterable[Row]) -> dict[Table, Sequence[Row]]:
    """Return what stands of `rows`: one row a key, by table, ordered by key.

    The order by key lets two writers meet without a deadlock.
    """
    standing: dict[Table, dict[tuple[Any, ...], Row]] = {}
    for row in rows:
        table = TABLES[type(row)]
        of_table = standing.setdefault(table, {})
        key = table.key_of(row)
        known = of_table.get(key)
        if known is None or table.version_of(known) < table.version_of(row):
            of_table[key] = row
    return {
        table: [of_table[key] for key in sorted(of_table)] for table, of_table in standing.items()
    }
