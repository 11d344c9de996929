"""`unique_name`: whose a name is. An append that takes another owner's is refused."""

from collections.abc import Iterator

from services.common.kernel.ids import column_key, house_account_id
from services.vending.adapters.database import Change, Claim, Statement
from services.vending.adapters.tables.table import Changes
from services.vending.domain.events.accounts import AccountOpened
from services.vending.domain.events.meters import MeterRegistered, MeterReplaced
from services.vending.domain.events.sites import GatewayRegistered
from services.vending.domain.tables import (
    ACCOUNT_KEY,
    BUS_ADDRESS,
    GATEWAY_ADDRESS,
    METER_KEY,
    SERIAL,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS unique_name(
  kind text NOT NULL, name text NOT NULL, owner text NOT NULL, PRIMARY KEY(kind, name)
);
"""
FREE = "DELETE FROM unique_name WHERE kind = $1 AND name = $2"
CLAIM = "INSERT INTO unique_name(kind, name, owner) VALUES($1, $2, $3) ON CONFLICT DO NOTHING"
OWNER = "SELECT owner FROM unique_name WHERE kind = $1 AND name = $2"


def _gateway(event: GatewayRegistered, _: int) -> Iterator[Change]:
    yield Claim(GATEWAY_ADDRESS, event.address, event.gateway_id)


def _account(event: AccountOpened, _: int) -> Iterator[Change]:
    yield Claim(ACCOUNT_KEY, str(event.account_key), event.account_id)


def _meter(event: MeterRegistered, _: int) -> Iterator[Change]:
    house = house_account_id(event.meter_id)
    yield Claim(SERIAL, event.serial, event.meter_id)
    yield Claim(METER_KEY, str(event.meter_key), event.meter_id)
    yield Claim(ACCOUNT_KEY, str(column_key("account", house)), house)
    if event.unit:
        yield Claim(BUS_ADDRESS, f"{event.line_id}/{event.unit}", event.meter_id)


def _replaced(event: MeterReplaced, _: int) -> Iterator[Change]:
    yield from _pass_on(SERIAL, event.previous_serial, event.serial, event.meter_id)
    before, now = (f"{event.line_id}/{u}" for u in (event.previous_unit, event.unit))
    yield from _pass_on(BUS_ADDRESS, before, now, event.meter_id)


def _pass_on(kind: str, before: str, now: str, owner: str) -> Iterator[Change]:
    """Let an owner have another name; the one before is free."""
    if now != before:
        yield Claim(kind, now, owner)
        yield Statement(FREE, [(kind, before)])


CHANGES: Changes = {
    GatewayRegistered: _gateway,
    AccountOpened: _account,
    MeterRegistered: _meter,
    MeterReplaced: _replaced,
}
