"""The office: what each command needs beside its own stream, and what is asked of the processes.

Processes over several streams, such as assignments and closings, have modules of their own: each
can be repeated, for a step derives its request from the one before, and what is half done is known
from the store.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput, shown
from services.common.kernel.ids import house_account_id
from services.common.kernel.profiles import Profile
from services.common.kernel.reasons import Reason
from services.common.kernel.routing import partition_of
from services.common.kernel.values import value_class
from services.common.tariffs.plan import ENERGY_MILLI_MAX
from services.vending.application.approvals import Approvals
from services.vending.application.assignments import Assignments
from services.vending.application.batches import Batches
from services.vending.application.book import Book, Outcome, accepted
from services.vending.application.changing import Changing
from services.vending.application.closings import Closings
from services.vending.application.correcting import Correcting
from services.vending.application.documents import Documents
from services.vending.application.echoes import Echoes
from services.vending.application.guarded import GUARDED
from services.vending.application.holds import Holds
from services.vending.application.leaving import OfClosings
from services.vending.application.moving import Moving
from services.vending.application.openings import Openings
from services.vending.application.payments import Payments
from services.vending.application.process import Unbroken
from services.vending.application.receipts import Receipts
from services.vending.application.transfers import Transfers
from services.vending.domain import (
    account,
    account_commands,
    account_opening,
    authority,
    changes,
    checks,
    closings,
    corrections,
    gateway,
    lending,
    meter,
    meter_commands,
    meter_device,
    meter_epochs,
    meter_orders,
    orders,
    policy,
    sale,
    settling,
    site,
    tariff,
    usage,
)
from services.vending.domain.account import Account
from services.vending.domain.authority import Authority
from services.vending.domain.decisions import Rejection, Request, changed
from services.vending.domain.events.closings import AccountCloseRefused, AccountClosing
from services.vending.domain.events.prices import TariffPublished
from services.vending.domain.events.refunds import CreditTransferred, RefundHeld
from services.vending.domain.gateway import Gateway
from services.vending.domain.meter import Meter
from services.vending.domain.policy import Policy
from services.vending.domain.refund import LASTS_MS_DEFAULT
from services.vending.domain.site import Site
from services.vending.domain.streams import State
from services.vending.domain.tables import Tables
from services.vending.domain.tariff import Tariff
from services.vending.domain.terms import Quote

S = TypeVar("S", bound=State)


@value_class
class Terms:
    """What the office goes by. `profiles`: name → device profile.

    `hold_lasts_ms`: how long a refund or a transfer waits for metering's echo.
    """

    shards: int
    tariff_lead_ms: int
    profiles: Mapping[str, Profile]
    hold_lasts_ms: int = LASTS_MS_DEFAULT


class Office:
    """Commands and queries of the book of record.

    Commands raise InvalidInput where they are refused and Retriable where they may be repeated.
    """

    def __init__(self, book: Book, tables: Tables, clock: Clock, terms: Terms) -> None:
        """Use `book`; `tables` are its projections and what was charged."""
        self._book = book
        self._clock = clock
        self._terms = terms
        self._assignments = Assignments(book, tables, clock)
        self._placing = asyncio.Lock()
        self._echoes = Echoes()
        self._unbroken = Unbroken()
        self.payments = Payments(book, tables, clock)
        self.receipts = Receipts(book, tables)
        self.openings = Openings(book, tables, clock, self)
        self.holds = Holds(book, tables)
        self.transfers = Transfers(book, tables, clock, terms.hold_lasts_ms)
        commands = {
            **Correcting(book, tables, terms.hold_lasts_ms).commands,
            **self.transfers.commands,
            **Changing(book).commands,
            **OfClosings(book, tables, self._assignments.unmoved).commands,
            **Moving(book, tables, self._profile, self._assignments.moved).commands,
            **GUARDED,
        }
        self.approvals = Approvals(book, tables, clock, commands)
        self.batches = Batches(book, tables, clock, self.approvals)
        self.documents = Documents(book, tables, clock, self.approvals, terms.tariff_lead_ms)
        self.closings = Closings(
            book,
            tables,
            clock,
            approvals=self.approvals,
            release=self.release_meter,
            assigning=self._assignments.lock,
        )

    @property
    def terms(self) -> Terms:
        """What the office goes by."""
        return self._terms

    # --- what exists ------------------------------------------------------------------------------

    async def register_site(self, command: site.RegisterSite) -> Outcome[Site]:
        """Let a site exist."""
        return await self._submit(Site, command.site_id, site.decide, command)

    async def hold_cuts(self, command: site.HoldCuts) -> Outcome[Site]:
        """Hold the cuts of a site."""
        return await self._submit(Site, command.site_id, site.decide, command)

    async def release_cuts(self, command: site.ReleaseCuts) -> Outcome[Site]:
        """Let cuts of a site be sent again."""
        return await self._submit(Site, command.site_id, site.decide, command)

    async def place_site(self, command: site.PlaceSite) -> Outcome[Site]:
        """Let a site lie within another. One at a time, or two could come to lie in each other."""
        async with self._placing:
            above: list[str] = []
            parent_id = command.parent_site_id
            while parent_id is not None and len(above) <= site.DEPTH_MAX:
                parent = await self._book.state_of(Site, parent_id)
                if parent is None:
                    break
                above.append(parent_id)
                parent_id = parent.parent_site_id
            command = replace(command, above=tuple(above))
            return await self._submit(Site, command.site_id, site.decide, command)

    async def register_gateway(
        self, request: Request, gateway_id: str, site_id: str, protocol: str, address: str
    ) -> Outcome[Gateway]:
        """Let a gateway exist."""
        at = await self._book.state_of(Site, site_id)
        command = gateway.RegisterGateway(request, gateway_id, site_id, protocol, address, at)
        return await self._submit(Gateway, gateway_id, gateway.decide, command)

    async def register_meter(
        self,
        request: Request,
        *,
        meter_id: str,
        serial: str,
        gateway_id: str,
        unit: int,
        profile: str,
        commodity: str,
        ratio: int,
        max_power_w: int | None,
    ) -> Outcome[Meter]:
        """Let a meter exist, its house's."""
        device = self._profile(profile)
        behind = await self._book.state_of(Gateway, gateway_id)
        at = await self._book.state_of(Site, behind.site_id) if behind else None
        command = meter_device.RegisterMeter(
            request,
            meter_id,
            serial,
            gateway_id,
            unit,
            device,
            commodity,
            ratio,
            max_power_w,
            partition_of(house_account_id(meter_id), self._terms.shards),
            behind,
            at,
        )
        return await self._submit(Meter, meter_id, meter_commands.decide, command)

    def _profile(self, name: str) -> Profile:
        """Return a device profile. Raises InvalidInput(PROFILE_UNKNOWN)."""
        if name not in self._terms.profiles:
            known = ", ".join(sorted(self._terms.profiles))
            text = f"there is no device profile {shown(name)}; known are {known}"
            raise InvalidInput(Reason.PROFILE_UNKNOWN, text, field="profile")
        return self._terms.profiles[name]

    async def publish_tariff(self, command: tariff.PublishTariff) -> Outcome[Tariff]:
        """Publish a version of a tariff; a later one may need a second person."""
        return await self.approvals.ask(command)

    async def publish_policy(self, command: policy.PublishPolicy) -> Outcome[Policy]:
        """Publish a version of a policy; a later one may need a second person."""
        return await self.approvals.ask(command)

    async def publish_authority(self, command: authority.PublishAuthority) -> Outcome[Authority]:
        """Publish a version of what one person may do alone, as the one that stands allows."""
        return await self.approvals.ask(command)

    async def authority(self, legal_entity: str) -> Authority:
        """Return what one person may do alone. Raises InvalidInput(AUTHORITY_NOT_FOUND)."""
        checks.check_text("legal_entity", legal_entity)
        found = await self._book.state_of(Authority, legal_entity)
        if found is None:
            text = f"{legal_entity} has not said what one person may do alone: publish it"
            raise InvalidInput(Reason.AUTHORITY_NOT_FOUND, text, field="legal_entity")
        return found

    # --- accounts and money -----------------------------------------------------------------------

    async def open_account(
        self,
        request: Request,
        *,
        account_id: str,
        site_id: str,
        subject_id: str | None,
        commodity: str,
        tariff_id: str,
        policy_id: str,
        first_sale_minor: int,
        method: str,
    ) -> Outcome[Account]:
        """Let an account exist, with credit where a first sale is asked for."""
        command = account_opening.OpenAccount(
            request,
            account_id,
            site_id,
            subject_id,
            commodity,
            tariff_id,
            policy_id,
            first_sale_minor,
            method,
            partition_of(account_id, self._terms.shards),
            await self._book.state_of(Site, site_id),
            await self._book.state_of(Tariff, tariff_id),
            await self._book.state_of(Policy, policy_id),
        )
        return await self._submit(Account, account_id, account_commands.decide, command)

    async def sell(self, command: sale.Sell) -> Outcome[Account]:
        """Sell credit, or what energy costs. The outcome's event is the CreditSold."""
        of = await self._book.state_of(Account, command.account_id)
        if of is not None:
            by = await self._book.state_of(Policy, of.policy_id)
            energy = command.energy_milli
            tariff = await self._in_force(of.tariff_id) if energy else None
            command = changed(command, policy=by, tariff=tariff)
        return accepted(
            await self._submit(Account, command.account_id, account_commands.decide, command)
        )

    async def grant_emergency_credit(self, request: Request, account_id: str) -> Outcome[Account]:
        """Grant what the account's policy, as it is now, grants; it may need a second person."""
        return await self.approvals.ask(lending.GrantEmergencyCredit(request, account_id))

    async def quote(self, account_id: str, energy_milli: int) -> tuple[Quote, Account]:
        """Return what energy costs an account now. Raises InvalidInput where nobody can say."""
        checks.check_between("energy_milli", energy_milli, 1, ENERGY_MILLI_MAX)
        of = await self.account(account_id)
        by = await self._book.state_of(Policy, of.policy_id)
        quoted = sale.quote_of(of, by, await self._in_force(of.tariff_id), energy_milli)
        if isinstance(quoted, Rejection):
            raise quoted.as_error()
        return quoted, of

    async def _in_force(self, tariff_id: str) -> TariffPublished | None:
        """Return the version of a tariff that applies now."""
        now_ms = self._clock.now_ms()
        versions = await self._book.events_of(Tariff, tariff_id, TariffPublished)
        return next((v for v in reversed(versions) if v.effective_at_ms <= now_ms), None)

    async def set_debt(self, command: lending.SetDebt) -> Outcome[Account]:
        """Set what an account owes beside its use, which may need a second person."""
        return await self.approvals.ask(command)

    async def change(self, command: changes.Change) -> Outcome[Account]:
        """Give an account another tariff, policy or tenant, which may need a second person."""
        return await self.approvals.ask(command)

    async def correct(self, command: corrections.Correction) -> Outcome[Account]:
        """Take a sale back, set credit right, give up what is owed: with a second person."""
        return await self.approvals.ask(command)

    async def refund(self, command: corrections.RefundCredit, wait_s: float) -> Outcome[Account]:
        """Pay credit out when metering's echo says what is left, with a second person.

        The outcome's event is the CreditRefunded. Raises Retriable where no echo came within
        `wait_s`: the refund goes on by itself, and the same request gets its answer.
        """
        return await self._echoes.awaited(
            partial(self.approvals.ask, command),
            RefundHeld,
            wait_s,
            f"credit of account {command.account_id} is held, but metering has not yet said what "
            "was used; repeat with the same request_id to get the answer",
        )

    async def transfer(
        self, command: corrections.TransferCredit, wait_s: float
    ) -> Outcome[Account]:
        """Give credit to another account when metering's echo says what is left, with a second one.

        The outcome's event is the TransferArrived. Raises Retriable where no echo came within
        `wait_s`: the transfer goes on by itself, and the same request gets its answer.
        """

        async def ask() -> Outcome[Account]:
            outcome: Outcome[Account] = await self.approvals.ask(command)
            if isinstance(outcome.event, CreditTransferred):
                await self._unbroken.run(self.transfers.carry(command.account_id))
                outcome = await self.approvals.ask(command)
            return outcome

        return await self._echoes.awaited(
            ask,
            RefundHeld,
            wait_s,
            f"credit of account {command.account_id} is held, but metering has not yet said what "
            "was used; repeat with the same request_id to get the answer",
        )

    async def close_account(
        self, command: closings.CloseAccount, wait_s: float
    ) -> Outcome[Account]:
        """Close an account when metering's echo says that nothing is left.

        Raises Retriable where no echo came within `wait_s`: the closing goes on by itself, and the
        same request gets its answer.
        """
        outcome = await self.closings.begin(command)
        if isinstance(outcome.event, AccountClosing):
            outcome = await self._echoes.awaited(
                partial(self.closings.begin, command),
                AccountClosing,
                wait_s,
                f"account {command.account_id} is being closed, but metering has not yet said what "
                "was used; repeat with the same request_id to get the answer",
            )
        if isinstance(outcome.event, AccountCloseRefused):
            reason, charged_nano = Reason(outcome.event.reason), outcome.event.charged_nano
            raise settling.close_refusal(outcome.state, reason, charged_nano).as_error()
        return outcome

    async def settle(self, command: settling.SettleClosing) -> None:
        """Take in metering's echo of a hold."""
        await self.closings.answer(command)
        self._echoes.wake()

    async def post_usage(self, command: usage.PostUsage) -> Outcome[Account]:
        """Take in what metering says an account was charged. The event, where it is news."""
        return await self._submit(Account, command.account_id, account_commands.decide, command)

    # --- assignment -------------------------------------------------------------------------------

    async def assign_meter(
        self,
        request: Request,
        meter_id: str,
        account_id: str,
        register_milli: int | None,
        from_account_id: str = "",
    ) -> Outcome[Meter]:
        """Give a meter to an account, in the meter's stream first: its house's, or another one's.

        A move is one decision, so one register ends it there and begins it here.
        """

        async def decide() -> Outcome[Meter]:
            command = meter_epochs.AssignMeter(
                request, meter_id, account_id, register_milli, from_account_id
            )
            return await self.approvals.ask(command)

        outcome = await self._unbroken.run(self._assignments.moved(meter_id, decide))
        if await self._assignments.undone(outcome.state):
            raise InvalidInput(
                Reason.ACCOUNT_NOT_OPEN,
                f"account {account_id} could not take meter {meter_id} in, which is its house's "
                "again; choose an open account with room",
                field="account_id",
            )
        return outcome

    async def release_meter(
        self, request: Request, meter_id: str, register_milli: int | None, closing_id: str = ""
    ) -> Outcome[Meter]:
        """Give a meter back to its house; a closing, where one is named, to end."""

        async def decide() -> Outcome[Meter]:
            command = meter_epochs.ReleaseMeter(request, meter_id, register_milli, closing_id)
            return await self.approvals.ask(command)

        return await self._unbroken.run(self._assignments.moved(meter_id, decide))

    # --- orders ---------------------------------------------------------------------------------

    async def replace_meter(
        self,
        request: Request,
        *,
        meter_id: str,
        closing_register_milli: int,
        opening_register_milli: int,
        serial: str | None,
        unit: int | None,
        profile: str | None,
        ratio: int | None,
        max_power_w: int | None,
        reason: str,
    ) -> Outcome[Meter]:
        """Let another device, or a register that began anew, count on for the same account."""

        async def decide() -> Outcome[Meter]:
            command = meter_epochs.ReplaceMeter(
                request,
                meter_id,
                closing_register_milli,
                opening_register_milli,
                serial,
                unit,
                profile,
                ratio,
                max_power_w,
                reason,
            )
            return await self.approvals.ask(command)

        return await self._unbroken.run(self._assignments.moved(meter_id, decide))

    async def change_ratio(
        self, request: Request, meter_id: str, ratio: int, register_milli: int | None, reason: str
    ) -> Outcome[Meter]:
        """Let the register count for another energy, of the same account."""

        async def decide() -> Outcome[Meter]:
            command = meter_epochs.ChangeRatio(request, meter_id, ratio, register_milli, reason)
            return await self.approvals.ask(command)

        return await self._unbroken.run(self._assignments.moved(meter_id, decide))

    async def order(
        self, command: meter_orders.ResolveReading | meter_orders.ForceRelay
    ) -> Outcome[Meter]:
        """Give an order about a meter that stays what and whose it is.

        Forcing it off may need a second person.
        """
        if isinstance(command, meter_orders.ForceRelay):
            return await self.approvals.ask(command)
        return await self._submit(Meter, command.meter_id, meter_commands.decide, command)

    async def order_for(self, command: orders.Order) -> Outcome[Account]:
        """Give an order about an account, or say what became of a notice.

        But for a notice it may need a second person.
        """
        if not isinstance(command, orders.RecordNotice):
            return await self.approvals.ask(command)
        return await self._submit(Account, command.account_id, account_commands.decide, command)

    # --- what is half done ------------------------------------------------------------------------

    async def complete(self) -> int:
        """Do what is half done or due: what is approved, paid, scheduled; assignments.

        Return how many steps.
        """
        done = await self.approvals.complete() + await self.payments.complete()
        done += await self.documents.complete() + await self.openings.complete()
        if ended := await self.transfers.complete():
            self._echoes.wake()
        done += ended
        done += await self._assignments.complete()
        return done + await self.closings.complete()

    async def drained(self) -> None:
        """Wait for the processes that are under way."""
        await self._unbroken.drained()

    # --- queries ----------------------------------------------------------------------------------

    async def account(self, account_id: str) -> Account:
        """Return an account. Raises InvalidInput(ACCOUNT_NOT_FOUND)."""
        checks.check_id("account_id", account_id)
        return await self.known(Account, account_id, account.account_not_found)

    async def meter(self, meter_id: str) -> Meter:
        """Return a meter. Raises InvalidInput(METER_NOT_FOUND)."""
        checks.check_id("meter_id", meter_id)
        return await self.known(Meter, meter_id, meter.meter_not_found)

    async def known(self, kind: type[S], entity_id: str, missing: Callable[[str], Rejection]) -> S:
        """Return what stands under an id. Raises what `missing` says where nothing does."""
        found = await self._book.state_of(kind, entity_id)
        if found is None:
            raise missing(entity_id).as_error()
        return found

    def _submit(
        self, kind: type[S], entity_id: str, decide: Callable[[Any, Any], Any], command: Any
    ) -> Coroutine[Any, Any, Outcome[S]]:
        return self._book.submit(kind, entity_id, lambda state: decide(state, command))
