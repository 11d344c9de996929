"""Registers that persons give: what their deciders need beside the account's stream."""

from dataclasses import replace

from services.vending.application.approvals import Guarded
from services.vending.application.book import Book
from services.vending.domain import closings
from services.vending.domain.account import Account
from services.vending.domain.closings import GiveRegister
from services.vending.domain.meter import Meter
from services.vending.domain.tables import Tables


class Registers:
    """The command by which a meter of a closing leaves at a register that persons give."""

    def __init__(self, book: Book, tables: Tables) -> None:
        """Use `book`; `tables` know what was charged."""
        self._book = book
        self._tables = tables

    @property
    def commands(self) -> dict[str, Guarded]:
        """The command, by the name that stands in proposals for good."""
        of_account = (Account, "account_id", closings.decide)
        return {
            "give-register": Guarded(GiveRegister, *of_account, self._with_bounds),
        }

    async def _with_bounds(self, command: GiveRegister) -> GiveRegister:
        meter = await self._book.state_of(Meter, command.meter_id)
        if meter is None:
            return command
        charged = await self._tables.charged(meter.meter_key, meter.epoch)
        bounds = closings.bounds_of(meter, charged, command.request.at_ms)
        return replace(command, bounds=bounds, epoch=meter.epoch)
