"""The office: what each command needs beside its own stream, and the processes over two streams.

An assignment is decided in the meter's stream and then told to the accounts; a closing waits for
metering's echo. Both are processes that can be repeated: each step derives its request from the one
before, and what is half done is known from the store.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from services.common.kernel.clock import Clock
from services.common.kernel.errors import Bug, InvalidInput, Retriable, shown
from services.common.kernel.ids import house_account_id, name_uuid
from services.common.kernel.profiles import Profile
from services.common.kernel.reasons import Reason
from services.common.kernel.routing import partition_of
from services.common.kernel.values import value_class
from services.common.runtime import points
from services.common.tariffs.plan import ENERGY_MILLI_MAX
from services.vending.application.approvals import Approvals, Guarded
from services.vending.application.batches import Batches
from services.vending.application.book import Book, Outcome, accepted
from services.vending.application.changing import Changing
from services.vending.application.closings import Closings
from services.vending.application.documents import Documents
from services.vending.application.holds import Holds
from services.vending.application.moving import Moving
from services.vending.application.openings import Openings
from services.vending.application.payments import Payments
from services.vending.application.process import PROCESS, each, step
from services.vending.application.receipts import Receipts
from services.vending.application.registers import Registers
from services.vending.application.transfers import Transfers
from services.vending.domain import (
    account,
    account_commands,
    account_opening,
    authority,
    batching,
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
from services.vending.domain.authority import Action, Authority
from services.vending.domain.batch import Batch
from services.vending.domain.decisions import Rejection, Request, changed
from services.vending.domain.events.closings import AccountCloseRefused, AccountClosing
from services.vending.domain.events.event import Event
from services.vending.domain.events.prices import TariffPublished
from services.vending.domain.events.refunds import CreditTransferred, RefundHeld
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.gateway import Gateway
from services.vending.domain.meter import Meter
from services.vending.domain.policy import Policy
from services.vending.domain.refund import LASTS_MS_DEFAULT
from services.vending.domain.site import Site
from services.vending.domain.streams import State
from services.vending.domain.tables import Tables, Todo
from services.vending.domain.tariff import Tariff
from services.vending.domain.terms import Quote

STEPS_MAX = 8
ASSIGNMENT = "assignment"
OF_A_DRAFT = ("document_id", "base_version")
GUARDED = {
    "publish-authority": Guarded(
        authority.PublishAuthority, Action.AUTHORITY, Authority, "legal_entity", authority.decide
    ),
    "publish-tariff": Guarded(
        tariff.PublishTariff,
        Action.PRICE_CHANGE,
        Tariff,
        "tariff_id",
        tariff.decide,
        said=OF_A_DRAFT,
    ),
    "keep-power": Guarded(
        orders.KeepPower, Action.KEEP_POWER, Account, "account_id", account_commands.decide
    ),
    "promise-payment": Guarded(
        orders.PromisePayment, Action.KEEP_POWER, Account, "account_id", account_commands.decide
    ),
    "thaw-account": Guarded(
        orders.ThawAccount, Action.THAW, Account, "account_id", account_commands.decide
    ),
    "publish-policy": Guarded(
        policy.PublishPolicy,
        Action.POLICY_CHANGE,
        Policy,
        "policy_id",
        policy.decide,
        said=(*OF_A_DRAFT, "effective_at_ms"),
    ),
    "set-debt": Guarded(
        lending.SetDebt, Action.DEBT, Account, "account_id", account_commands.decide
    ),
    "adjust-credit": Guarded(
        corrections.AdjustCredit, Action.ADJUSTMENT, Account, "account_id", corrections.decide
    ),
    "submit-batch": Guarded(batching.SubmitBatch, Action.BATCH, Batch, "batch_id", batching.decide),
    "settle-account": Guarded(
        settling.SettleAccount, Action.REFUND, Account, "account_id", closings.decide
    ),
    "write-off": Guarded(
        corrections.WriteOff, Action.WRITE_OFF, Account, "account_id", corrections.decide
    ),
}
"""What may need a second person, by the names that stand in proposals for good."""
T = TypeVar("T")
S = TypeVar("S", bound=State)
OfPolicy = TypeVar("OfPolicy", corrections.RefundCredit, lending.GrantEmergencyCredit)


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
        self._tables = tables
        self._clock = clock
        self._terms = terms
        self._assigning = asyncio.Lock()
        self._placing = asyncio.Lock()
        self._settled = asyncio.Event()
        self._steps: set[asyncio.Task[Any]] = set()
        reverse = Guarded(
            corrections.ReverseSale,
            Action.REVERSAL,
            Account,
            "account_id",
            corrections.decide,
            self._with_sale,
        )
        self.payments = Payments(book, tables, clock)
        self.receipts = Receipts(book, tables)
        refund = Guarded(
            corrections.RefundCredit,
            Action.REFUND,
            Account,
            "account_id",
            corrections.decide,
            self._with_book_epoch,
            corrections.named,
            said=("at_most_minor",),
        )
        grant = Guarded(
            lending.GrantEmergencyCredit,
            Action.EMERGENCY,
            Account,
            "account_id",
            account_commands.decide,
            self._with_policy,
            lending.grant_named,
            said=("at_most_minor",),
        )
        self.openings = Openings(book, tables, clock, self)
        self.holds = Holds(book, tables)
        self.transfers = Transfers(book, tables, clock, terms.hold_lasts_ms)
        commands = {
            "reverse-sale": reverse,
            "refund-credit": refund,
            "grant-emergency": grant,
            **self.transfers.commands,
            **Changing(book).commands,
            **Registers(book, tables).commands,
            **Moving(book, tables, self._profile, self._moved).commands,
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
            assigning=self._assigning,
        )

    @property
    def terms(self) -> Terms:
        """What the office goes by."""
        return self._terms

    # --- what exists ------------------------------------------------------------------------------

    async def register_site(self, command: site.RegisterSite) -> Outcome[Site]:
        """Let a site exist."""
        return await self._book.submit(Site, command.site_id, partial(_on, site.decide, command))

    async def hold_cuts(self, command: site.HoldCuts) -> Outcome[Site]:
        """Hold the cuts of a site."""
        return await self._book.submit(Site, command.site_id, partial(_on, site.decide, command))

    async def release_cuts(self, command: site.ReleaseCuts) -> Outcome[Site]:
        """Let cuts of a site be sent again."""
        return await self._book.submit(Site, command.site_id, partial(_on, site.decide, command))

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
            decide = partial(_on, site.decide, command)
            return await self._book.submit(Site, command.site_id, decide)

    async def register_gateway(
        self, request: Request, gateway_id: str, site_id: str, protocol: str, address: str
    ) -> Outcome[Gateway]:
        """Let a gateway exist."""
        at = await self._book.state_of(Site, site_id)
        command = gateway.RegisterGateway(request, gateway_id, site_id, protocol, address, at)
        return await self._book.submit(Gateway, gateway_id, partial(_on, gateway.decide, command))

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
        return await self._book.submit(
            Meter, meter_id, partial(_on, meter_commands.decide, command)
        )

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
        return await self._book.submit(
            Account, account_id, partial(_on, account_commands.decide, command)
        )

    async def sell(self, command: sale.Sell) -> Outcome[Account]:
        """Sell credit, or what energy costs. The outcome's event is the CreditSold."""
        of = await self._book.state_of(Account, command.account_id)
        if of is not None:
            by = await self._book.state_of(Policy, of.policy_id)
            energy = command.energy_milli
            tariff = await self._in_force(of.tariff_id) if energy else None
            command = changed(command, policy=by, tariff=tariff)
        decide = partial(_on, account_commands.decide, command)
        return accepted(await self._book.submit(Account, command.account_id, decide))

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
        return await self._until_settled(
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
                await self._unbroken(self.transfers.carry(command.account_id))
                outcome = await self.approvals.ask(command)
            return outcome

        return await self._until_settled(
            ask,
            RefundHeld,
            wait_s,
            f"credit of account {command.account_id} is held, but metering has not yet said what "
            "was used; repeat with the same request_id to get the answer",
        )

    async def _until_settled(
        self,
        ask: Callable[[], Coroutine[Any, Any, Outcome[Account]]],
        waits: type[Event],
        wait_s: float,
        late: str,
    ) -> Outcome[Account]:
        """Ask until the answer is another event than `waits`. Raises Retriable with `late`."""
        outcome = await ask()
        try:
            async with asyncio.timeout(wait_s):
                while isinstance(outcome.event, waits):
                    settled = self._settled
                    outcome = await ask()
                    if isinstance(outcome.event, waits):
                        await settled.wait()
        except TimeoutError:
            raise Retriable(late) from None
        return outcome

    async def _with_policy(self, command: OfPolicy) -> OfPolicy:
        of = await self._book.state_of(Account, command.account_id)
        by = await self._book.state_of(Policy, of.policy_id) if of else None
        return replace(command, policy=by)

    async def _with_book_epoch(self, command: corrections.RefundCredit) -> corrections.RefundCredit:
        command = await self._with_policy(command)
        return replace(
            command,
            book_epoch=await self._tables.book_epoch(),
            lasts_ms=self._terms.hold_lasts_ms,
        )

    async def _with_sale(self, command: corrections.ReverseSale) -> corrections.ReverseSale:
        sales = await self._book.events_of(Account, command.account_id, CreditSold)
        of_receipt = (sale for sale in sales if sale.receipt_id == command.receipt_id)
        return replace(command, sale=next(of_receipt, None))

    async def close_account(
        self, command: closings.CloseAccount, wait_s: float
    ) -> Outcome[Account]:
        """Close an account when metering's echo says that nothing is left.

        Raises Retriable where no echo came within `wait_s`: the closing goes on by itself, and the
        same request gets its answer.
        """
        outcome = await self.closings.begin(command)
        if isinstance(outcome.event, AccountClosing):
            outcome = await self._until_settled(
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
        self._wake()

    def _wake(self) -> None:
        """Let those look again who wait for metering's echo."""
        settled, self._settled = self._settled, asyncio.Event()
        settled.set()

    async def post_usage(self, command: usage.PostUsage) -> Outcome[Account]:
        """Take in what metering says an account was charged. The event, where it is news."""
        decide = partial(_on, account_commands.decide, command)
        return await self._book.submit(Account, command.account_id, decide)

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

        outcome = await self._unbroken(self._moved(meter_id, decide))
        if await self._undone(outcome.state):
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

        return await self._unbroken(self._moved(meter_id, decide))

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

        return await self._unbroken(self._moved(meter_id, decide))

    async def change_ratio(
        self, request: Request, meter_id: str, ratio: int, register_milli: int | None, reason: str
    ) -> Outcome[Meter]:
        """Let the register count for another energy, of the same account."""

        async def decide() -> Outcome[Meter]:
            command = meter_epochs.ChangeRatio(request, meter_id, ratio, register_milli, reason)
            return await self.approvals.ask(command)

        return await self._unbroken(self._moved(meter_id, decide))

    async def order(
        self, command: meter_orders.ResolveReading | meter_orders.ForceRelay
    ) -> Outcome[Meter]:
        """Give an order about a meter that stays what and whose it is.

        Forcing it off may need a second person.
        """
        if isinstance(command, meter_orders.ForceRelay):
            return await self.approvals.ask(command)
        return await self._book.submit(
            Meter, command.meter_id, partial(_on, meter_commands.decide, command)
        )

    async def order_for(self, command: orders.Order) -> Outcome[Account]:
        """Give an order about an account, or say what became of a notice.

        But for a notice it may need a second person.
        """
        if not isinstance(command, orders.RecordNotice):
            return await self.approvals.ask(command)
        decide = partial(_on, account_commands.decide, command)
        return await self._book.submit(Account, command.account_id, decide)

    # --- what is half done ------------------------------------------------------------------------

    async def complete(self) -> int:
        """Do what is half done or due: what is approved, paid, scheduled; assignments.

        Return how many steps.
        """
        done = await self.approvals.complete() + await self.payments.complete()
        done += await self.documents.complete() + await self.openings.complete()
        if ended := await self.transfers.complete():
            self._wake()
        done += ended
        if todos := await self._tables.todos():
            meters = dict.fromkeys(todo.meter_id for todo in todos)
            async with self._assigning:
                done += await each(self._book.failing, ASSIGNMENT, meters, self._complete)
        return done + await self.closings.complete()

    async def _moved(self, meter_id: str, decide: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Decide a move with nothing half done before it nor, if all goes well, after it."""
        async with self._assigning:
            await self._complete(meter_id)
            outcome = await decide()
            await self._complete(meter_id)
            return outcome

    async def _unbroken(self, steps: Coroutine[Any, Any, T]) -> T:
        """Run the steps to their end also where the caller stops waiting."""
        task = asyncio.ensure_future(steps)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        return await asyncio.shield(task)

    async def drained(self) -> None:
        """Wait for the processes that are under way."""
        while self._steps:
            await asyncio.wait(set(self._steps))

    async def _complete(self, meter_id: str) -> int:
        done = 0
        while todos := await self._tables.todos(meter_id):
            for todo in todos:
                points.point("telling")
                await self._tell(todo)
                done += 1
            if done > STEPS_MAX:
                raise Bug(f"the assignment of {meter_id} does not come to an end: {todos}")
        return done

    async def _tell(self, todo: Todo) -> None:
        """Tell an account that a meter came or went; where it cannot come, release it again."""
        content = (todo.account_id, todo.meter_id, todo.epoch, todo.register_milli)
        request = await self._derived(todo.kind, todo, content)
        if todo.kind == "leave":
            leave = account_commands.LeaveMeter(request, *content)
            decide = partial(_on, account_commands.decide, leave)
            await self._book.submit(Account, todo.account_id, decide)
            return
        join = account_commands.JoinMeter(request, *content)
        try:
            decide = partial(_on, account_commands.decide, join)
            await self._book.submit(Account, todo.account_id, decide)
        except InvalidInput:
            now = await self._book.state_of(Meter, todo.meter_id)
            if now is None or now.epoch != todo.epoch:
                return  # released already: the leaving, which is next, settles both
            undo = meter_epochs.ReleaseMeter(
                await self._derived("undo", todo, content), todo.meter_id, todo.register_milli
            )
            await self._book.submit(Meter, todo.meter_id, partial(_on, meter_commands.decide, undo))

    async def _derived(self, name: str, todo: Todo, content: tuple[object, ...]) -> Request:
        """Return the request of a step, whose origin is that of the move."""
        origin = await self._book.origin_at(todo.position)
        now_ms = self._clock.now_ms()
        return step(now_ms, content, origin, name, todo.meter_id, todo.epoch)

    async def _undone(self, assigned: Meter) -> bool:
        now = await self._book.state_of(Meter, assigned.meter_id)
        undo = name_uuid("process", "undo", assigned.meter_id, assigned.epoch)
        return now is not None and now.answers.get((PROCESS, str(undo))) is not None

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


def _on(decide: Callable[[Any, Any], Any], command: Any, state: Any) -> Any:
    return decide(state, command)
