"""`charged`, `consumer_offset`: of the topics that vending reads."""

from collections.abc import Iterable

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Table
from services.vending.domain.tables import Charged, Offset

SCHEMA = """
CREATE TABLE IF NOT EXISTS charged(
  meter_key bigint PRIMARY KEY,
  epoch bigint NOT NULL,
  sequence bigint NOT NULL,
  register_milli bigint NOT NULL,
  to_time_ms bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS consumer_offset(
  topic text NOT NULL,
  partition bigint NOT NULL,
  next_offset bigint NOT NULL,
  PRIMARY KEY(topic, partition)
);
"""


class Charges(Table):
    """The newest charge of each meter, and how far a topic was read."""

    async def charged_register_milli(self, meter_key: int, epoch: int) -> int | None:
        """Return the last register charged in a meter's epoch; None where none is known."""
        rows = await self._database.rows(
            "SELECT register_milli FROM charged WHERE meter_key = $1 AND epoch = $2",
            meter_key,
            epoch,
        )
        return rows[0][0] if rows else None

    async def charged(self, meter_key: int, epoch: int) -> Charged | None:
        """Return the newest charge of a meter's epoch; None where none is known."""
        rows = await self._database.rows(
            "SELECT meter_key, epoch, sequence, register_milli, to_time_ms FROM charged "
            "WHERE meter_key = $1 AND epoch = $2",
            meter_key,
            epoch,
        )
        return Charged(*rows[0]) if rows else None

    async def keep_charged(self, charged: Iterable[Charged], offsets: Iterable[Offset]) -> None:
        """Keep what was charged and how far the topic was read, in one transaction."""
        charges = Statement(
            "INSERT INTO charged(meter_key, epoch, sequence, register_milli, to_time_ms) "
            "VALUES($1, $2, $3, $4, $5) ON CONFLICT(meter_key) DO UPDATE SET "
            "epoch = excluded.epoch, sequence = excluded.sequence, "
            "register_milli = excluded.register_milli, to_time_ms = excluded.to_time_ms "
            "WHERE (excluded.epoch, excluded.sequence) > (charged.epoch, charged.sequence)",
            [(c.meter_key, c.epoch, c.sequence, c.register_milli, c.to_time_ms) for c in charged],
        )
        positions = Statement(
            "INSERT INTO consumer_offset(topic, partition, next_offset) VALUES($1, $2, $3) "
            "ON CONFLICT(topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
            [(o.topic, o.partition, o.next_offset) for o in offsets],
        )
        await self._database.run([charges, positions])

    async def offsets(self, topic: str) -> dict[int, int]:
        """Return partition → next offset of what was read of a topic."""
        rows = await self._database.rows(
            "SELECT partition, next_offset FROM consumer_offset WHERE topic = $1", topic
        )
        return dict(rows)
