"""Where epochs of meters end: what their deciders need beside the meter's stream."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from services.common.kernel.profiles import Profile
from services.vending.application.approvals import CarryOut, Guarded
from services.vending.application.book import Book
from services.vending.domain import meter_commands
from services.vending.domain.account import Account
from services.vending.domain.approval import Proposal
from services.vending.domain.closings import bounds_of
from services.vending.domain.meter import Meter
from services.vending.domain.meter_epochs import (
    AssignMeter,
    ChangeRatio,
    ReleaseMeter,
    ReplaceMeter,
)
from services.vending.domain.tables import Tables

Ending = TypeVar("Ending", AssignMeter, ReleaseMeter, ReplaceMeter, ChangeRatio)
Around = Callable[[str, CarryOut], Awaitable[Proposal]]
OfDevice = TypeVar("OfDevice", ReplaceMeter, ChangeRatio)


class Moving:
    """Commands that end an epoch of a meter; each may need a second person."""

    def __init__(
        self, book: Book, tables: Tables, profile: Callable[[str], Profile], around: Around
    ) -> None:
        """Use `book`; `tables` know what was charged, `profile` finds a device profile by name.

        `around`: what a move must not be decided without (Assignments).
        """
        self._book = book
        self._tables = tables
        self._profile = profile
        self._around = around

    @property
    def commands(self) -> dict[str, Guarded]:
        """The commands, by the names that stand in proposals for good."""
        of_meter = (Meter, "meter_id", meter_commands.decide)
        return {
            "move-meter": Guarded(
                AssignMeter,
                *of_meter,
                self._with_account,
                said=("from_account_id",),
                around=self._around,
            ),
            "release-meter": Guarded(ReleaseMeter, *of_meter, self._with_end, around=self._around),
            "replace-meter": Guarded(
                ReplaceMeter, *of_meter, self._with_device, around=self._around
            ),
            "change-ratio": Guarded(ChangeRatio, *of_meter, self._with_device, around=self._around),
        }

    async def _with_end(self, command: Ending) -> Ending:
        now = await self._book.state_of(Meter, command.meter_id)
        if now is None:
            return command
        owner = await self._book.state_of(Account, now.account_id)
        charged = await self._tables.charged(now.meter_key, now.epoch)
        return replace(
            command,
            owner=owner,
            charged_register_milli=charged.register_milli if charged else None,
            most_milli=bounds_of(now, charged, command.request.at_ms).most_milli,
        )

    async def _with_account(self, command: AssignMeter) -> AssignMeter:
        account = await self._book.state_of(Account, command.account_id)
        return replace(await self._with_end(command), account=account)

    async def _with_device(self, command: OfDevice) -> OfDevice:
        now = await self._book.state_of(Meter, command.meter_id)
        named = command.profile if isinstance(command, ReplaceMeter) else None
        if named is None and now is not None:
            named = now.profile
        device = self._profile(named) if named is not None else None
        return replace(await self._with_end(command), device=device)
