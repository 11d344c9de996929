"""Commands about accounts and meters: what their deciders need beside the one stream."""

from dataclasses import replace

from services.vending.application.approvals import Guarded
from services.vending.application.book import Book
from services.vending.domain import changes, meter_commands
from services.vending.domain.account import Account
from services.vending.domain.changes import ChangeTenant, ChangeTerms
from services.vending.domain.meter import Meter
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.policy import Policy
from services.vending.domain.site import Site
from services.vending.domain.tariff import Tariff


class Changing:
    """Such commands; each may need a second person."""

    def __init__(self, book: Book) -> None:
        """Use `book`."""
        self._book = book

    @property
    def commands(self) -> dict[str, Guarded]:
        """The commands, by the names that stand in proposals for good."""
        of_account = (Account, "account_id", changes.decide)
        return {
            "change-terms": Guarded(ChangeTerms, *of_account, self._with_terms),
            "change-tenant": Guarded(ChangeTenant, *of_account),
            "force-relay": Guarded(
                ForceRelay,
                Meter,
                "meter_id",
                meter_commands.decide,
                self._with_account,
                said=("closing_id",),
            ),
        }

    async def _with_account(self, command: ForceRelay) -> ForceRelay:
        of = await self._book.state_of(Meter, command.meter_id)
        return replace(
            command, of=await self._book.state_of(Account, of.account_id) if of else None
        )

    async def _with_terms(self, command: ChangeTerms) -> ChangeTerms:
        of = await self._book.state_of(Account, command.account_id)
        if of is None:
            return command
        return replace(
            command,
            site=await self._book.state_of(Site, of.site_id),
            tariff=await self._book.state_of(Tariff, command.tariff_id or of.tariff_id),
            policy=await self._book.state_of(Policy, command.policy_id or of.policy_id),
        )
