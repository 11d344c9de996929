"""Goal: whatever sellers, cashiers and approvers do, and repeat, the money is where a clerk says.

Method: Hypothesis plays them on the office over a real SQLite file: sales at the desk, by money and
by energy, and by outside sellers that reserve, confirm, cancel or forget; grants, debts, refunds
and transfers that metering answers sooner or later, or never, and corrections of any size, by
persons who may or may not do them alone; others approve or decline. Accounts are opened, at once or
prepared before; tenants, tariffs and policies change; documents come into force when their time has
come; batches sell, correct and change terms. Accounts are closed, in part or in full: a meter is
read or its register given, metering says what was used, a remainder is dropped, what is left is
paid out, what lacks is owed. Meters go from account to account, are released and replaced, at a
register that is read, known or too low; relays are ordered off, on and back to prepaid, one by one
and in batches, by closings and by persons, and others move in before that is approved or done
(vending_fitters.py). Metering tells what was used, late and twice. Requests are repeated at any
later time, or come again with other content. The process dies before or after any of its appends,
is started again, completes what is half done, and gets the request that had no answer once more.

A clerk says what each answer is (vending_clerk.py) and enters what happens into a ledger
on paper of thirty lines (vending_ledger.py); after each step every account of the chart must stand,
of each customer, as in that ledger, and all of them sum to zero; and every meter must be whose its
card says (vending_cards.py), at the same register in both accounts. On PostgreSQL too:
tests/integration/test_vending_postgres.py.
"""

import inspect
import os
from dataclasses import replace
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from services.common.kernel.ids import name_uuid
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.postings import Usage
from services.vending.domain.settling import SettleClosing
from services.vending.domain.usage import PostUsage
from tests.property.vending_fitters import Fitters
from tests.property.vending_ledger import Amount, Ledger
from tests.property.vending_paper import BATCHES, HOLDS, OF_METERS, Ask
from tests.property.vending_town import ACCOUNTS, METERS, NANO, PERSONS, another_than

HOUR_MS = 3_600_000
NEVER = "0b4d5ef4-6f0c-5d38-9a3c-7b1f8f6f2d10"
OWING = ACCOUNTS[0]
"""The other one never owes while it is open, so that its credit may be paid out."""
SELLING = sorted(BATCHES.keys() - OF_METERS.keys())
TO_OPEN = ("B1", "B2", "B3")


class Town(Fitters):
    """Three persons at a desk, two accounts and more, one book."""

    @initialize()
    def open(self) -> None:
        self.run(self.begin())
        self.ask(self.new("owe", OWING, PERSONS[0], 1_000))
        self.ask(self.new("grant", OWING, PERSONS[0]))
        for account in ACCOUNTS:
            self.ask(self.new("sell", account, PERSONS[0], 2_000))
        self.open_another(TO_OPEN[0], PERSONS[0], "open", 1_700, METERS[0], soon=False)

    accounts, persons = Fitters.accounts, Fitters.persons
    amounts = st.sampled_from([1, 99, 500, 501, 2_000])

    # --- the desk ----------------------------------------------------------------------------

    @rule(account=accounts, person=persons, amount=amounts, by_energy=st.booleans())
    def sell(self, account: str, person: str, amount: int, by_energy: bool) -> None:
        """`by_energy`: of so many thousandths of a unit, by the price and the fee of then."""
        self.ask(self.new("sell energy" if by_energy else "sell", account, person, amount))

    @rule(
        account=accounts,
        person=persons,
        what=st.sampled_from(
            [
                ("grant", 0, ""),
                ("owe", 0, ""),
                ("owe", 77, ""),
                ("adjust", -900, ""),
                ("adjust", -100, ""),
                ("adjust", 101, ""),
                ("write-off", 1, "emergency"),
                ("write-off", 300, "emergency"),
                ("write-off", 77, "debt"),
                ("write-off", 300, "arrears"),
                ("write-off", 1, "arrears"),
            ]
        ),
    )
    def set_right(self, account: str, person: str, what: tuple[str, int, str]) -> None:
        kind, amount, about = what
        name = OWING if kind in {"grant", "owe"} else account
        self.ask(self.new(kind, name, person, amount, about))

    @rule(account=accounts, person=persons, about=st.sampled_from(["owed too", "owing nothing"]))
    def move_in(self, account: str, person: str, about: str) -> None:
        """Another tenant takes the account over, with its credit."""
        self.ask(self.new("move in", account, person, about=about))

    @rule(
        account=accounts,
        person=persons,
        about=st.sampled_from(["P2", "P1", "T2", "T1"]),
        soon=st.booleans(),
    )
    def change_terms(self, account: str, person: str, about: str, soon: bool) -> None:
        self.ask_two(self.new("terms", account, person, about=about), soon)

    @rule(
        person=persons,
        what=st.sampled_from(
            [
                ("policy", "P1", "100000/1/450"),
                ("policy", "P1", "0/0/0"),
                ("policy", "P2", "20000/5/300"),
                ("tariff", "T1", "1234567"),
                ("tariff", "T2", "3"),
            ]
        ),
        hours=st.sampled_from([None, None, 1, 1, 24, -1, 0]),
        soon=st.booleans(),
    )
    def draft(self, person: str, what: tuple[str, str, str], hours: int | None, soon: bool) -> None:
        """Submit a document, for now or for later."""
        kind, target, said = what
        at_ms = 0 if hours is None else self.clerk.now_ms + hours * HOUR_MS
        self.ask_two(self.new(kind, target, person, at_ms, said), soon)

    # --- openings ----------------------------------------------------------------------------

    @rule(
        account=st.sampled_from(TO_OPEN[1:] * 2 + TO_OPEN),
        person=persons,
        what=st.sampled_from(["open", "open", "prepare", "start", "start", "drop"]),
        amount=st.sampled_from([0, 1, 1_700]),
        meter_id=st.sampled_from([*METERS, ""]),
        soon=st.booleans(),
    )
    def open_another(
        self, account: str, person: str, what: str, amount: int, meter_id: str, soon: bool
    ) -> None:
        """Open an account with a meter and a first sale, at once or prepared before.

        `soon`: what is prepared is started by the next.
        """
        about = meter_id if what in {"open", "prepare"} else ""
        amount = amount if what in {"open", "start"} else 0
        register_milli = self.register(meter_id, "shown") if meter_id else 0
        ask = self.new(what, account, person, amount, about, register_milli=register_milli)
        self.ask(ask)
        if ask in self.said and what == "prepare" and soon:
            self.ask(self.new("start", account, another_than(person), 1_700))

    # --- closings ----------------------------------------------------------------------------

    useds = st.sampled_from([0, Fraction(5, 8), 1_300, Fraction(4_001, 2)])

    @rule(
        account=accounts,
        person=persons,
        method=st.sampled_from(["cash", "cash", ""]),
        cuts=st.integers(0, 1),
        leaving=st.sampled_from(["read", "given", ""]),
        used=useds,
    )
    def close(
        self, account: str, person: str, method: str, cuts: int, leaving: str, used: Amount
    ) -> None:
        """`leaving`: how its meters leave, and metering says what was used; "": not yet."""
        ask = self.new("close", account, person, cuts, method)
        self.ask(ask)
        if leaving and ask in self.clerk.steps:
            for meter_id in self.clerk.has(account):
                if leaving == "read":
                    self.read(meter_id)
                else:
                    self.gives(account, meter_id, person, is_late=True)
            self.answer_closing(account, used=used)

    @precondition(lambda self: self.held())
    @rule(person=persons, cuts=st.integers(0, 1), data=st.data())
    def close_in_part(self, person: str, cuts: int, data: st.DataObject) -> None:
        meter_id = data.draw(st.sampled_from(METERS))
        account = self.clerk.cards[meter_id].owner or data.draw(self.accounts)
        self.ask(self.new("close part", account, person, cuts, meter_id))

    @precondition(lambda self: self.clerk.shut)
    @rule(person=persons, data=st.data())
    def cancel_closing(self, person: str, data: st.DataObject) -> None:
        account = data.draw(st.sampled_from(sorted(self.clerk.shut)))
        about = self.clerk.shut[account].ask.closing_id
        self.ask(self.new("cancel closing", account, person, about=about))

    @precondition(lambda self: self.clerk.shut)
    @rule(person=persons, is_late=st.booleans(), data=st.data())
    def give_register(self, person: str, is_late: bool, data: st.DataObject) -> None:
        """Of a meter that was perhaps not read until the deadline, or is not in it at all."""
        account = data.draw(st.sampled_from(sorted(self.clerk.shut)))
        shut = self.clerk.shut[account]
        meter_id = data.draw(st.sampled_from([*shut.meters, METERS[0]]))
        self.gives(account, meter_id, person, is_late)

    def gives(self, account: str, meter_id: str, person: str, is_late: bool) -> None:
        closing_id = self.clerk.shut[account].ask.closing_id
        if is_late:
            self.passes(61)
        about, register_milli = f"{closing_id} {meter_id}", self.register(meter_id, "shown")
        ask = self.new("give", account, person, about=about, register_milli=register_milli)
        self.ask_two(ask, is_late)

    @precondition(lambda self: self.clerk.shut)
    @rule(person=persons, more=st.sampled_from([0, 0, 1]), data=st.data())
    def settle(self, person: str, more: int, data: st.DataObject) -> None:
        """Ask once more for what is left, where somebody declined that; or for more."""
        account = data.draw(st.sampled_from(sorted(self.clerk.shut)))
        shut = self.clerk.shut[account]
        amount = shut.whole - self.clerk.owes(account) + more
        self.ask(self.new("settle", account, person, amount, shut.ask.closing_id))

    @precondition(lambda self: self.echoing())
    @rule(data=st.data(), times=st.integers(1, 2), lost=st.sampled_from([0, 0, 0, 1]), used=useds)
    def echo_of_closing(self, data: st.DataObject, times: int, lost: int, used: Amount) -> None:
        self.answer_closing(data.draw(st.sampled_from(self.echoing())), times, lost, used)

    def echoing(self) -> list[str]:
        return [name for name, shut in self.clerk.shut.items() if shut.step == "echo"]

    def answer_closing(self, name: str, times: int = 1, lost: int = 0, used: Amount = 0) -> None:
        """Answer the hold of a closing, by what was told, and `used` since."""
        clerk, stands = self.clerk, self.clerk.ledger.stands
        sequence = clerk.sequence[name] + (-1 if lost else 1)
        energy, tax = clerk.unsaid[name] - stands["energy", name], -int(stands["tax", name])
        energy += used
        told = self.usage(name, sequence, energy, tax)

        async def echoed() -> None:
            state = await self.world.office.account(name)
            hold_id = state.closing.hold_id if state.closing else "an old one"
            charged_nano = int((energy + tax) * NANO)
            echo = SettleClosing(name, hold_id, charged_nano, sequence, 0, clerk.now_ms, told)
            await self.world.office.settle(echo)

        if not lost:
            clerk.sequence[name], clerk.unsaid[name] = sequence, 0
            clerk.ledger.use(name, energy=energy, tax=tax)
        shut = clerk.shut[name]
        clerk.told(name, lost)
        for _ in range(times):
            self.run(self.until_answered(echoed))
        self.goes_on()
        if shut.step == "approval":
            about = shut.ask.closing_id
            amount = shut.whole - clerk.owes(name)
            self.waits(Ask("settle by itself", name, shut.ask.person, -1, amount, about))

    # --- batches -----------------------------------------------------------------------------

    @rule(
        person=persons,
        what=st.sampled_from(SELLING),
        amount=st.sampled_from([60, 101, 700]),
        soon=st.integers(0, 2),
        data=st.data(),
    )
    def batch(self, person: str, what: str, amount: int, soon: int, data: st.DataObject) -> None:
        names = sorted(self.clerk.status)
        chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        amount = 0 if what == "batch terms" else amount
        self.ask_two(self.new(what, "", person, amount, " ".join(chosen)), bool(soon))
        if soon == 2:
            self.gives_rounds()

    @precondition(lambda self: self.clerk.batches)
    @rule(
        person=persons,
        what=st.sampled_from(["pause", "resume", "resume", "cancel batch"]),
        data=st.data(),
    )
    def hold_batch(self, person: str, what: str, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(list(self.clerk.batches)))
        self.ask(self.new(what, "", person, about=str(batch.number)))

    @precondition(lambda self: "running" in self.clerk.batches.values())
    @rule(dies_at=st.sampled_from([None, None, *range(8)]))
    def turn(self, dies_at: int | None) -> None:
        """Batches go on, and what came of each target must be told."""
        self.gives_rounds(dies_at)

    # --- outside sellers ---------------------------------------------------------------------

    @rule(account=accounts, person=persons, amount=amounts)
    def reserve(self, account: str, person: str, amount: int) -> None:
        self.ask(self.new("reserve", account, person, amount, f"paid-{len(self.asks)}"))

    @rule(account=accounts, policy_id=st.sampled_from(["P2", "P1"]))
    def terms_change_before_it_is_paid(self, account: str, policy_id: str) -> None:
        """Fee and share are those that the buyer was promised."""
        about = f"paid-{len(self.asks)}"
        self.ask(self.new("reserve", account, PERSONS[1], 2_000, about))
        self.change_terms(account, PERSONS[1], policy_id, soon=True)
        self.ask(self.new("confirm", account, PERSONS[1], about=about))

    @rule(account=st.sampled_from([OWING, TO_OPEN[0]]), lent=st.sampled_from([900, 450]))
    def policy_changes_before_it_is_approved(self, account: str, lent: int) -> None:
        """Of emergency credit that waits no more is granted than was proposed."""
        self.ask(self.new("sell", account, PERSONS[0], 2_000))
        self.change_terms(account, PERSONS[0], "P2", soon=True)
        grant = self.new("grant", account, PERSONS[0])
        self.ask(grant)
        self.draft(PERSONS[0], ("policy", "P2", f"0/0/{lent}"), None, soon=True)
        if grant in self.waiting:
            self.judges(grant, PERSONS[1], yes=True)

    @precondition(lambda self: self.clerk.reserved)
    @rule(what=st.sampled_from(["confirm", "confirm", "cancel"]), data=st.data())
    def settle_reserved(self, what: str, data: st.DataObject) -> None:
        about = data.draw(st.sampled_from([*sorted(self.clerk.reserved), "never reserved"]))
        self.ask(self.new(what, ACCOUNTS[0], PERSONS[0], about=about))

    @rule(minutes=st.sampled_from([1, 15, 61, 25 * 60]))
    def time_passes(self, minutes: int) -> None:
        """Reservations time out, which keeps nobody from buying who has paid; and so do holds."""
        self.passes(minutes)

    # --- refunds and transfers ---------------------------------------------------------------

    @rule(
        account=accounts,
        person=persons,
        amount=st.sampled_from([0, 60, 700, 900]),
        used=st.sampled_from([0, 1, 1_500]),
        what=st.sampled_from(HOLDS),
        again=st.booleans(),
        data=st.data(),
    )
    def pay_out(
        self,
        account: str,
        person: str,
        amount: int,
        used: int,
        what: str,
        again: bool,
        data: st.DataObject,
    ) -> None:
        """To who asks, or to another account; `used`: meanwhile, which the echo alone tells.

        `again`: it is not told yet.
        """
        others = sorted(self.clerk.status.keys() - {account})
        about = data.draw(st.sampled_from(others)) if what == "transfer" else ""
        self.ask(self.new(what, account, person, amount, about))
        self.clerk.unsaid[account] += used
        if account in self.clerk.holding and not again:
            self.answer_hold(account)

    @precondition(lambda self: self.clerk.holding)
    @rule(data=st.data())
    def refund_beside_another(self, data: st.DataObject) -> None:
        account = data.draw(st.sampled_from(sorted(self.clerk.holding)))
        self.ask(self.new("refund", account, PERSONS[0], 5))

    @precondition(lambda self: any(a.what == "transfer" for a in self.clerk.holding.values()))
    @rule(person=persons, data=st.data())
    def close_where_credit_goes(self, person: str, data: st.DataObject) -> None:
        held = [a for a in self.clerk.holding.values() if a.what == "transfer"]
        ask = data.draw(st.sampled_from(held))
        self.ask(self.new("close", ask.about, person, 1, "cash"))
        self.answer_hold(ask.account)

    @precondition(lambda self: self.clerk.holding)
    @rule(data=st.data(), times=st.integers(1, 2), lost=st.sampled_from([0, 0, 1]))
    def echo(self, data: st.DataObject, times: int, lost: int) -> None:
        """Metering answers a hold, perhaps without what it `lost`; perhaps once more."""
        self.answer_hold(data.draw(st.sampled_from(sorted(self.clerk.holding))), times, lost)

    def answer_hold(self, name: str, times: int = 1, lost: int = 0) -> None:
        ask, stands = self.clerk.holding[name], self.clerk.ledger.stands
        used = self.clerk.unsaid[name] - stands["energy", name] - stands["tax", name]
        sequence = self.clerk.sequence[name]

        async def told() -> None:
            state = await self.world.office.account(name)
            hold_id = state.refunding.hold_id if state.refunding else "an old one"
            at_ms = self.clerk.now_ms
            echo = SettleClosing(name, hold_id, int(used * NANO), sequence - lost, 0, at_ms)
            await self.world.office.settle(echo)
            await self.world.office.complete()  # what was sent arrives

        for _ in range(times):
            self.run(self.until_answered(told))
        self.ends(ask, self.clerk.echo(name, lost))

    @precondition(lambda self: self.clerk.ledger.sales)
    @rule(person=persons, again=st.booleans(), data=st.data())
    def reverse(self, person: str, again: bool, data: st.DataObject) -> None:
        """Of what was sold; `again`: perhaps what was reversed before, or what is not there."""
        sales = self.clerk.ledger.sales
        choices = sorted(sales.keys() - self.clerk.back)
        if again or not choices:
            choices = [*sorted(sales), NEVER]
        receipt = data.draw(st.sampled_from(choices))
        account = sales[receipt][0] if receipt in sales else ACCOUNTS[0]
        self.ask(self.new("reverse", account, person, about=receipt))

    # --- repeats -----------------------------------------------------------------------------

    @precondition(lambda self: self.asks)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self.ask(data.draw(st.sampled_from(self.asks)))

    @rule(data=st.data())
    def use_a_request_id_again(self, data: st.DataObject) -> None:
        """With other content: of whatever was done, refused for good, or waits."""
        known = [*self.said, *self.waiting, *self.clerk.steps]
        kept = [ask for ask in known if ask.number >= 0 and ask.what not in {"confirm", "cancel"}]
        ask = data.draw(st.sampled_from(kept))
        other = replace(ask, amount=ask.amount + 1)
        self.said[other] = "REQUEST_ID_REUSED"
        self.ask(other)

    # --- metering ----------------------------------------------------------------------------

    @rule(
        account=accounts,
        later=st.sampled_from([-1, 0, 1, 1, 3]),
        energy=st.sampled_from([0, 0, Fraction(1, 4), 5, Fraction(3, 8)]),
        tax=st.sampled_from([0, 1, 91]),
        much=st.sampled_from([0, 0, 700, 90_000]),
    )
    def metering_tells(self, account: str, later: int, energy: Amount, tax: int, much: int) -> None:
        """Totals at a sequence that is news, known or old; less than before where corrected."""
        sequence = self.clerk.sequence[account] + later
        told = self.usage(account, sequence, energy + much, tax)
        if later > 0:
            self.clerk.sequence[account] = sequence
            self.clerk.ledger.use(account, energy=energy + much, tax=tax)
        self.run(self.until_answered(lambda: self.world.office.post_usage(told)))

    def usage(self, account: str, sequence: int, energy: Amount, tax: int) -> PostUsage:
        content = (account, sequence, energy, tax)
        at_ms = self.clerk.now_ms
        request = Request("~vending", str(name_uuid(*content)), fingerprint(*content), at_ms)
        usage = Usage(energy_nano=int(energy * NANO), tax_nano=tax * NANO)
        return PostUsage(request, account, sequence, usage, 0, 1, 1, [], b"row", 9, at_ms)

    # --- the second person -------------------------------------------------------------------

    @precondition(lambda self: self.waiting)
    @rule(person=persons, yes=st.booleans(), data=st.data())
    def judge(self, person: str, yes: bool, data: st.DataObject) -> None:
        ask = data.draw(st.sampled_from(list(self.waiting)))
        self.judges(ask, person, yes)

    def pending(self) -> list[Ask]:
        return [ask for ask, answer in self.waiting.items() if answer == "APPROVAL_REQUIRED"]

    @precondition(lambda self: self.pending())
    @rule(data=st.data())
    def approve(self, data: st.DataObject) -> None:
        ask = data.draw(st.sampled_from(self.pending()))
        self.judges(ask, another_than(ask.person), yes=True)

    # --- the machine -------------------------------------------------------------------------

    @rule(steps=st.integers(0, 7))
    def die_soon(self, steps: int) -> None:
        """Let the process die at one of the half steps to come."""
        self.store.arm(steps)

    @rule()
    def start_anew(self) -> None:
        self.run(self.restart())


def test_the_ledger_that_judges_has_thirty_lines_of_code() -> None:
    """Blank lines and those of docstrings aside."""
    lines = [line.strip() for line in inspect.getsource(Ledger).splitlines()]
    assert len([line for line in lines if line and not line.startswith('"""')]) <= 30


EXAMPLES = int(os.environ.get("WATTVEND_PROPERTY_EXAMPLES", "100"))
TestTown = Town.TestCase
TestTown.settings = settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
