"""The read models in memory: rows of metering's outputs and of a book, asked as the queries ask.

So that explanations can be tested without a database, by the code that answers over gRPC.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from services.common.kernel.ids import column_key
from services.reporting.domain.explain import BookEvent
from services.reporting.domain.projections import Record, project
from services.reporting.domain.rows import (
    AccountLevelRow,
    AccountTotalsRow,
    AlarmRow,
    ChargeRow,
    NoticeRow,
    PolicyVersionRow,
    PriceLineRow,
    Row,
    TariffVersionRow,
    newest,
)

_TOPICS = {
    "charge-frame": "charges",
    "balance": "balances",
    "alarm": "alarms",
    "notice": "notices",
}


class Tables:
    """Rows by kind. `known`: ids of meters and accounts, which rows have as keys."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.rows: list[Row] = []
        self.events: list[BookEvent] = []
        self.streams: dict[str, list[BookEvent]] = {}
        """Events by stream; `events` are those of an account that has none here."""
        self.registers_max: dict[tuple[str, int], int | None] = {}
        self._meters = {column_key("meter", name): name for name in known}
        self._accounts = {column_key("account", name): name for name in known}

    def sent(self, outputs: Iterable[Any]) -> None:
        """Project what metering sent."""
        for output in outputs:
            if (topic := _TOPICS.get(output.subject)) is not None:
                offset = output.record["log_offset"]
                self.rows += project(Record(topic, offset, output.subject, output.record))

    def published(self, fact: Mapping[str, Any]) -> None:
        """Keep what the ledger tells of a tariff's or a policy's version, or of a meter."""
        if "register_max_milli" in fact:
            self.registers_max[fact["meter_id"], fact["epoch"]] = fact["register_max_milli"]
            return
        kind: Any = TariffVersionRow if "tariff_id" in fact else PolicyVersionRow
        self.rows.append(kind(*(fact.get(name) for name in kind._fields)))

    def of(self, kind: type[Any]) -> list[Any]:
        return [row for row in self.rows if isinstance(row, kind)]

    # --- what Queries answers ---------------------------------------------------------------

    async def charge(
        self, meter_key: int, epoch: int | None, sequence: int | None
    ) -> ChargeRow | None:
        found = [
            row
            for row in self.of(ChargeRow)
            if row.meter_key == meter_key
            and epoch in {None, row.epoch}
            and sequence in {None, row.sequence}
        ]
        return max(found, key=lambda row: (row.epoch, row.sequence), default=None)

    async def charge_of_account(self, account_key: int, sequence: int | None) -> ChargeRow | None:
        found = [
            row
            for row in self.of(ChargeRow)
            if row.account_key == account_key
            and (sequence is None or row.account_sequence <= sequence)
        ]
        return max(found, key=lambda row: row.account_sequence, default=None)

    async def behind(self, charge: ChargeRow, kinds: Sequence[str]) -> ChargeRow | None:
        found = [
            row
            for row in self.of(ChargeRow)
            if row[:2] == charge[:2]
            and row.sequence < charge.sequence
            and row.to_time_ms > charge.to_time_ms
            and row.kind in kinds
        ]
        return min(found, key=lambda row: row.to_time_ms, default=None)

    async def received_at_ms(self, charge: ChargeRow) -> int:
        found = [
            row.to_received_at_ms
            for row in self.of(ChargeRow)
            if row[:2] == charge[:2] and row.to_reading_id == charge.from_reading_id is not None
        ]
        return found[0] if found else 0

    async def register_max_milli(self, meter_id: str, epoch: int) -> int | None:
        return self.registers_max.get((meter_id, epoch))

    async def names(self, charge: ChargeRow) -> tuple[str, str]:
        meter_id = self._meters.get(charge.meter_key, "")  # a fee is of no meter
        return meter_id, self._accounts.get(charge.account_key, f"house:{meter_id}")

    async def price_lines(self, charge: ChargeRow) -> list[PriceLineRow]:
        return [row for row in self.of(PriceLineRow) if row[:3] == charge[:3]]

    async def tariff_versions(
        self, tariff_id: str, versions: Iterable[int]
    ) -> list[TariffVersionRow]:
        rows: Any = newest(self.of(TariffVersionRow)).values()
        wanted = set(versions)
        return [
            row for kind in rows for row in kind if row[0] == tariff_id and row.version in wanted
        ]

    async def policy_version(self, policy_id: str, version: int) -> PolicyVersionRow | None:
        found = [row for row in self.of(PolicyVersionRow) if row[:2] == (policy_id, version)]
        return found[-1] if found else None

    async def cut(self, account_id: str, alarm_id: UUID | None) -> AlarmRow | None:
        decisions = [row for row in self.of(AlarmRow) if row.kind in {"cut", "not-cut"}]
        if alarm_id is not None:
            return next((row for row in decisions if row.alarm_id == alarm_id), None)
        cuts = [row for row in decisions if (row.account_id, row.kind) == (account_id, "cut")]
        return max(cuts, key=lambda row: row.log_offset, default=None)

    async def intents(self, _cut: AlarmRow, _policy: PolicyVersionRow | None) -> list[Any]:
        return []

    async def refusals(self, decision: AlarmRow) -> list[AlarmRow]:
        mine = [row for row in self.of(AlarmRow) if row.account_id == decision.account_id]
        before = [row for row in mine if row.log_offset < decision.log_offset]
        left = [r.log_offset for r in before if r.kind in {"cut", "restored", "cleared"}]
        since = max(left, default=-1)
        return [
            row
            for row in before
            if row.kind == "not-cut"
            and row.log_offset > since
            and row.arrears_since_ms == decision.arrears_since_ms
        ]

    async def notice(self, notice_id: UUID) -> NoticeRow | None:
        return next((row for row in self.of(NoticeRow) if row.notice_id == notice_id), None)

    async def balance(self, account_id: str) -> dict[str, Any] | None:
        levels = [row for row in self.of(AccountLevelRow) if row.account_id == account_id]
        if not levels:
            return None
        level = max(levels, key=lambda row: row.log_offset)
        totals = max(
            (row for row in self.of(AccountTotalsRow) if row.account_key == level.account_key),
            key=lambda row: (row.log_offset, row.account_sequence, row.as_of_ms),
        )
        return {**level._asdict(), **totals._asdict()}

    async def silence(self, decision: AlarmRow) -> AlarmRow | None:
        told = [
            row
            for row in self.of(AlarmRow)
            if (row.account_id, row.meter_id) == (decision.account_id, decision.meter_id)
            and row.kind == "meter-silent"
            and row.log_offset < decision.log_offset
        ]
        return max(told, key=lambda row: row.log_offset, default=None)

    async def book_events(self, stream: str) -> list[BookEvent]:
        return self.streams.get(stream, self.events if stream.startswith("account-") else [])

    async def charged_spans(self, account_key: int, sequence: int) -> list[dict[str, Any]]:
        spans: dict[tuple[str, int], list[ChargeRow]] = {}
        for row in self.of(ChargeRow):
            if row.account_key == account_key and row.account_sequence <= sequence:
                spans.setdefault((self._meters.get(row.meter_key, ""), row.epoch), []).append(row)
        return [
            {
                "meter_id": meter_id,
                "epoch": epoch,
                "first_sequence": min(row.sequence for row in rows),
                "last_sequence": max(row.sequence for row in rows),
                "charges": len(rows),
                "first_account_sequence": min(row.account_sequence for row in rows),
                "last_account_sequence": max(row.account_sequence for row in rows),
                "energy_milli": sum(row.energy_milli for row in rows),
                "amount_nano": sum(row.amount_nano for row in rows),
            }
            for (meter_id, epoch), rows in sorted(spans.items())
        ]
