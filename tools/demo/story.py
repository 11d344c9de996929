"""The story: who does what, and what must be true when it ends."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from services.common.kernel import names
from services.common.kernel.reasons import Reason
from services.common.kernel.units import format_scaled
from tools import mall, sitefile
from tools.client import Clients, Refused
from tools.demo import judge, plan
from tools.demo.fleet import Fleet, TrueMeter
from tools.demo.leaving import Leaving
from tools.demo.observe import Observer, Spread
from tools.demo.plan import DemoMeter, Plan
from tools.demo.screen import Screen, money
from tools.demo.setup import Desk
from wattvend.reporting.v1 import reporting_pb2 as r

READ_WITHIN_S = 30.0
ACT_WITHIN_S = 75.0
RELAY_WITHIN_S = 20.0
STANDS_FOR_S = 1.0
SETTLE_WITHIN_S = 30.0
POLL_S = 0.1
RUNNER_LASTS_S = 24
STANDIN_LASTS_S = (16, 20, 28)
ABSENT_LASTS_S = 30
ABSENT_BEFORE_PAYMENT_S = 2.0
ABSENT_AFTER_PAYMENT_S = 2.0

Kill = Callable[[str], Awaitable[None]]


@dataclass
class Payment:
    """A top-up: when the operator pressed the button, ms UTC."""

    meter: DemoMeter
    at_ms: int


@dataclass
class Story:
    """One run. `kill` (tests only) ends a service by SIGKILL at the story's turns.

    `second`: another person than who stands behind `clients`.
    """

    clients: Clients
    second: Clients
    fleet: Fleet
    observer: Observer
    screen: Screen
    plan: Plan
    run_id: UUID
    kill: Kill | None = None
    payments: list[Payment] = field(default_factory=list)
    stood: bool = False

    async def run(self) -> bool:
        """Play it. Returns whether every check held."""
        desk = Desk(self.clients, self.run_id)
        sales = await self._open(desk)
        before = await self.fleet.meters()
        absent = self.plan.cast.absent
        worth = plan.steps_worth(sales[absent] * plan.MINOR_NANO, absent)
        vanish_at = before[absent.meter_id].register_lsb + worth
        await self.fleet.offline_after(absent.meter_id, vanish_at)
        self.screen.chapter("The load comes on")
        await self.fleet.load(on=True)
        self.screen.say(f"{len(self.plan.meters)} meters draw power; every reading is charged")
        async with asyncio.TaskGroup() as acts:
            acts.create_task(self._runner(desk, sales[self.plan.cast.runner]))
            acts.create_task(self._absent(desk))
            for meter in self.plan.cast.standins:
                acts.create_task(self._standin(desk, meter))
        return await self._judge(desk, before)

    async def _open(self, desk: Desk) -> dict[DemoMeter, int]:
        self.screen.chapter("An operator sets up the site")
        file = mall.site_file(self.plan.fleet)
        await sitefile.apply(self.clients, file, lambda text: self.screen.say(f"registered {text}"))
        cast = self.plan.cast
        sales = plan.first_sales_minor(
            self.plan,
            {
                cast.runner: RUNNER_LASTS_S,
                cast.absent: ABSENT_LASTS_S,
                **dict(zip(cast.standins, STANDIN_LASTS_S, strict=True)),
            },
        )
        await desk.open_accounts(sales, READ_WITHIN_S)
        total = sum(sales.values()) * plan.MINOR_NANO
        self.screen.say(
            f"{len(sales)} accounts opened, {money(total)} sold, each meter given to its account "
            "at its exact register"
        )
        return sales

    async def _runner(self, desk: Desk, sale_minor: int) -> None:
        meter = self.plan.cast.runner
        account = meter.account_id
        full = sale_minor * plan.MINOR_NANO
        self.screen.say(f"{account} has {money(full)} of credit: watch it")
        with self.screen.live() as line:
            watching = asyncio.create_task(self._watch(account, full, line.balance))
            for kind, victim in (("alarm-1", "metering"), ("alarm-2", "ingest")):
                await self._decided(account, kind)
                await self._kill(victim)
            await self._decided(account, "cut")
            await self._kill("control")
            await self._position(meter, "open")
            watching.cancel()
        opened_at = await self.fleet.meter(meter.meter_id)
        self.screen.say(f"{account}: the relay is open", "bold red")
        await self._explain(account)
        await asyncio.sleep(STANDS_FOR_S)
        later = await self.fleet.meter(meter.meter_id)
        self.stood = opened_at.register_lsb == later.register_lsb
        register = format_scaled(later.register_lsb, 2)
        self.screen.say(f"{account}: without power its register stands at {register} kWh")
        await self._kill("vending")
        await self._top_up(desk, meter)
        await self._position(meter, "closed")
        self.screen.say(f"{account}: power is back", "bold green")

    async def _absent(self, desk: Desk) -> None:
        meter = self.plan.cast.absent
        account = meter.account_id
        await self._decided(account, "cut")
        self.screen.say(
            f"{account}: its meter went offline with the very reading that used up the credit; "
            "the cut waits for a meter that does not answer"
        )
        await asyncio.sleep(ABSENT_BEFORE_PAYMENT_S)
        await self._top_up(desk, meter)
        await asyncio.sleep(ABSENT_AFTER_PAYMENT_S)
        await self.fleet.online(meter.meter_id)
        self.screen.say(f"{account}: its meter is back online, after the payment")
        await self._confirmed(meter)
        if not (await self.fleet.meter(meter.meter_id)).transitions:
            self.screen.say(f"{account}: was never cut", "bold green")

    async def _standin(self, desk: Desk, meter: DemoMeter) -> None:
        """Do the same quietly: more samples of how long things take."""
        await self._decided(meter.account_id, "cut", quiet=True)
        await self._position(meter, "open")
        await self._top_up(desk, meter, quiet=True)
        await self._position(meter, "closed")

    # --- steps -----------------------------------------------------------------------------------

    async def _decided(self, account: str, kind: str, *, quiet: bool = False) -> None:
        await self.observer.until(
            lambda: bool(self.observer.alarms_of(account, kind)), ACT_WITHIN_S, f"{account} {kind}"
        )
        if quiet:
            return
        alarm = self.observer.alarms_of(account, kind)[0]
        style = {"alarm-1": "yellow", "alarm-2": "dark_orange", "cut": "red"}[kind]
        name = {"alarm-1": "alarm 1", "alarm-2": "alarm 2", "cut": "cut-off decided"}[kind]
        self.screen.say(f"{account}: {name}, {money(alarm['available_nano'])} left", style)

    async def _position(self, meter: DemoMeter, position: str) -> None:
        async def there() -> bool:
            return (await self.fleet.meter(meter.meter_id)).position == position

        await _until(there, RELAY_WITHIN_S, f"relay of {meter.meter_id} {position}")

    async def _confirmed(self, meter: DemoMeter) -> None:
        """Wait until a read after the return says what the platform wants: power."""

        def known() -> bool:
            mine = [o for o in self.observer.outcomes.values() if o["meter_id"] == meter.meter_id]
            newest = max(((o["intent_epoch"], o["intent_offset"]) for o in mine), default=None)
            return any(
                o["wanted"] == "closed" and o["result"] == "confirmed"
                for o in mine
                if (o["intent_epoch"], o["intent_offset"]) == newest
            )

        await self.observer.until(known, RELAY_WITHIN_S, f"read-back of {meter.meter_id}")

    async def _top_up(self, desk: Desk, meter: DemoMeter, *, quiet: bool = False) -> None:
        self.payments.append(Payment(meter, time.time_ns() // 1_000_000))
        await desk.sell(meter.account_id, plan.TOP_UP_MINOR, "top-up")
        if not quiet:
            amount = money(plan.TOP_UP_MINOR * plan.MINOR_NANO)
            self.screen.say(f"{meter.account_id}: topped up with {amount} through gRPC", "green")

    async def _watch(
        self, account: str, full: int, show: Callable[[str, r.Balance, int], None]
    ) -> None:
        while True:
            # A look that fails is tried again: nobody's story depends on it.
            with contextlib.suppress(Refused):
                balance = await self.clients.reporting(
                    "GetBalance", r.GetBalanceRequest(name=names.BALANCE.name(account))
                )
                show(account, balance, full)
            await asyncio.sleep(2 * POLL_S)

    async def _explain(self, account: str) -> None:
        explanation: r.CutoffExplanation | None = None

        async def complete() -> bool:
            nonlocal explanation
            try:
                explanation = await self.clients.reporting(
                    "ExplainCutoff", r.ExplainCutoffRequest(account=names.ACCOUNT.name(account))
                )
            except Refused as refused:
                if refused.reason != Reason.NO_CUTOFF:
                    raise
                return False  # the relay may open before reporting has seen the decision
            attempts = [a for i in explanation.intents for a in i.attempts]
            return any(a.result == "confirmed" for a in attempts)

        await _until(complete, RELAY_WITHIN_S, f"explanation of the cut of {account}")
        assert explanation is not None
        self.screen.explanation(explanation)

    async def _kill(self, service: str) -> None:
        if self.kill is not None:
            self.screen.say(f"SIGKILL for {service}", "magenta")
            await self.kill(service)

    # --- the end ---------------------------------------------------------------------------------

    async def _judge(self, desk: Desk, before: Mapping[str, TrueMeter]) -> bool:
        self.screen.chapter("The load stops; every meter is read once more")
        await self.fleet.load(on=False)
        stopped = await self.fleet.meters()

        async def read_once_more() -> bool:
            now = await self.fleet.meters()
            return all(now[m].reads_served > stopped[m].reads_served + 1 for m in now)

        await _until(read_once_more, SETTLE_WITHIN_S, "a reading of every meter after the load")
        after = await self.fleet.meters()
        rows: list[judge.MeterVerdict] = []

        async def adds_up() -> bool:
            nonlocal rows
            rows = await judge.verdicts(
                self.clients, self.plan.meters, before, after, desk.receipts
            )
            return not any(row.faults for row in rows)

        try:
            await _until(adds_up, SETTLE_WITHIN_S, "everything adds up")
        except TimeoutError as late:
            self.screen.say(str(late), "bold red")
        self.screen.verdicts(rows)
        self.screen.chapter("A tenant moves out")
        leaving = Leaving(
            self.clients, self.second, desk.request_id, self.screen, lambda: self._kill("vending")
        )
        left = await leaving.run(next(r for r in rows if r.meter == self.plan.cast.absent))
        self.screen.spreads(self._spreads(after))
        checks = [*self._checks(rows, after), *left]
        self.screen.checks(checks)
        return all(holds for _, holds, _ in checks)

    def _spreads(self, after: Mapping[str, TrueMeter]) -> list[tuple[str, Spread | None]]:
        opened, restored = [], []
        for alarm in self.observer.alarms.values():
            if alarm["kind"] != "cut" or alarm["meter_id"] not in after:
                continue
            moves = after[alarm["meter_id"]].transitions
            since = alarm["reading_received_at_ms"]
            opened += [t.at_ms - since for t in moves if t.position == "open"][:1]
        for payment in self.payments:
            moves = after[payment.meter.meter_id].transitions
            closed = [t.at_ms for t in moves if t.position == "closed" and t.at_ms > payment.at_ms]
            restored += [at_ms - payment.at_ms for at_ms in closed[:1]]
        return [
            ("reading received → charged", Spread.of(self.observer.reading_to_charge_ms)),
            ("threshold crossed → relay open", Spread.of(opened)),
            ("payment → power restored", Spread.of(restored)),
        ]

    def _checks(
        self, rows: Sequence[judge.MeterVerdict], after: Mapping[str, TrueMeter]
    ) -> list[tuple[str, bool, str]]:
        def failing(fault: str) -> list[str]:
            return [row.meter.account_id for row in rows if fault in row.faults]

        def law(name: str, fault: str) -> tuple[str, bool, str]:
            wrong = failing(fault)
            found = f"{len(rows) - len(wrong)} of {len(rows)} meters"
            return (name, bool(rows) and not wrong, found + (f"; not {wrong}" if wrong else ""))

        kinds = [
            alarm["kind"]
            for alarm in self.observer.alarms.values()
            if alarm["account_id"] == self.plan.cast.runner.account_id
        ]
        moves = [t.position for t in after[self.plan.cast.runner.meter_id].transitions]
        absent_moves = after[self.plan.cast.absent.meter_id].transitions
        used = sum(row.true_cost_nano for row in rows)
        return [
            (
                f"{self.plan.cast.runner.account_id}: alarm 1, alarm 2, cut, restored",
                kinds == ["alarm-1", "alarm-2", "cut", "restored"],
                ", ".join(kinds),
            ),
            (
                "its register stood while the relay was open",
                self.stood,
                f"read twice, {STANDS_FOR_S:.0f} s apart or more",
            ),
            (
                "its relay opened once and closed once",
                moves == ["open", "closed"],
                ", ".join(moves),
            ),
            (
                f"{self.plan.cast.absent.account_id} was never cut",
                not absent_moves
                and bool(self.observer.alarms_of(self.plan.cast.absent.account_id, "restored")),
                f"{len(absent_moves)} relay movements",
            ),
            law("charged = true registers × price", "charged"),
            law("credited = receipts, in reporting", "credited"),
            law("credited = receipts, in the book", "book"),
            law("balance = credited − charged", "balance"),
            law("relay: true = wanted = read back", "relay"),
            ("energy was used", used > 0, money(used)),
        ]


async def _until(condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> None:
    """Ask again and again. Raises TimeoutError with `what` was awaited."""
    try:
        async with asyncio.timeout(timeout_s):
            while not await condition():
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise TimeoutError(f"{what}: not within {timeout_s:.0f} s") from None
