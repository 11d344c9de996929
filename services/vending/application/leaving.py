"""What persons do with closings: what their deciders need beside the account's stream."""

from dataclasses import replace

from services.vending.application.approvals import Guarded
from services.vending.application.book import Book
from services.vending.application.moving import Around
from services.vending.domain import closings
from services.vending.domain.account import Account
from services.vending.domain.closings import CloseAccount, CloseMeters, GiveRegister
from services.vending.domain.meter import Meter
from services.vending.domain.tables import Tables


class OfClosings:
    """Commands by which meters leave: a closing, and a register that persons give."""

    def __init__(self, book: Book, tables: Tables, around: Around) -> None:
        """Use `book`; `tables` know what was charged.

        `around`: what a closing must not begin without (Office).
        """
        self._book = book
        self._tables = tables
        self._around = around

    @property
    def commands(self) -> dict[str, Guarded]:
        """The commands, by the names that stand in proposals for good."""
        of_account = (Account, "account_id", closings.decide)
        return {
            "close-account": Guarded(
                CloseAccount,
                *of_account,
                self._with_book_epoch,
                said=("method", "without_cut", "lasts_ms", "reason"),
                around=self._around,
            ),
            "close-meters": Guarded(
                CloseMeters, *of_account, self._with_meters, around=self._around
            ),
            "give-register": Guarded(GiveRegister, *of_account, self._with_bounds),
        }

    async def _with_book_epoch(self, command: CloseAccount) -> CloseAccount:
        return replace(command, book_epoch=await self._tables.book_epoch())

    async def _with_meters(self, command: CloseMeters) -> CloseMeters:
        return replace(command, meters=tuple(command.meters))  # a proposal has a list

    async def _with_bounds(self, command: GiveRegister) -> GiveRegister:
        meter = await self._book.state_of(Meter, command.meter_id)
        if meter is None:
            return command
        charged = await self._tables.charged(meter.meter_key, meter.epoch)
        bounds = closings.bounds_of(meter, charged, command.request.at_ms)
        return replace(command, bounds=bounds, epoch=meter.epoch)
