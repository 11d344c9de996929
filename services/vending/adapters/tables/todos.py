"""`todo`: assignments that the stream of a meter decided, and that of an account has not."""

from collections.abc import Iterator

from services.common.kernel.ids import house_account_id
from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Table
from services.vending.domain.events.accounts import AccountMeterJoined, AccountMeterLeft
from services.vending.domain.events.meters import MeterAssigned
from services.vending.domain.tables import Todo

SCHEMA = """
CREATE TABLE IF NOT EXISTS todo(
  kind text NOT NULL CHECK(kind IN ('join', 'leave')),
  account_id text NOT NULL,
  meter_id text NOT NULL,
  epoch bigint NOT NULL,
  register_milli bigint NOT NULL,
  position bigint NOT NULL,
  PRIMARY KEY(meter_id, epoch, kind)
);
"""


class Todos(Table):
    """What is half done."""

    async def todos(self, meter_id: str | None = None) -> list[Todo]:
        """Return what is half done, oldest first: of one meter, or of all."""
        rows = await self._database.rows(
            "SELECT kind, account_id, meter_id, epoch, register_milli, position FROM todo "
            "WHERE CAST($1 AS text) IS NULL OR meter_id = $1 ORDER BY position, kind DESC",
            meter_id,
        )
        return [Todo(*row) for row in rows]


def _plan(event: MeterAssigned, position: int) -> Iterator[Statement]:
    """Note what accounts have still to hear of an assignment."""
    house = house_account_id(event.meter_id)
    sides = (
        ("leave", event.previous_account_id, event.epoch - 1),
        ("join", event.account_id, event.epoch),
    )
    yield Statement(
        "INSERT INTO todo(kind, account_id, meter_id, epoch, register_milli, position) "
        "VALUES($1, $2, $3, $4, $5, $6)",
        [
            (kind, account_id, event.meter_id, epoch, event.register_milli, position)
            for kind, account_id, epoch in sides
            if account_id != house
        ],
    )


def _joined(event: AccountMeterJoined, _: int) -> Iterator[Statement]:
    """Let no account hear twice of an assignment."""
    yield Statement(
        "DELETE FROM todo WHERE meter_id = $1 AND epoch = $2 AND kind = 'join'",
        [(event.meter_id, event.epoch)],
    )


def _left(event: AccountMeterLeft, _: int) -> Iterator[Statement]:
    """Nor twice of an end; who has left hears no more that the meter had come."""
    yield Statement(
        "DELETE FROM todo WHERE meter_id = $1 AND epoch = $2", [(event.meter_id, event.epoch)]
    )


CHANGES: Changes = {
    MeterAssigned: _plan,
    AccountMeterJoined: _joined,
    AccountMeterLeft: _left,
}
