"""What a plan asks for a unit: prices of its rates, surcharges, folded taxes, and its ladders.

Besides units: its fees.

Taxes are folded into prices a unit when a tariff is published, so that no interval is rounded: a
tax on a price of p is half-up(p x ppm / 10^6), to the resolution of prices.
"""

from collections.abc import Iterable, Iterator

from services.common.kernel.frames import RATES
from services.common.kernel.values import value_class
from services.common.tariffs.plan import PPM, Plan, Step, Tax, rate_index

TOTAL = -1
"""In place of a rate: the ladder on all of them together."""


@value_class
class Rise:
    """From `above_milli` of a period on, a unit costs that much more than right below it."""

    above_milli: int
    price_micro: int
    tax_micro: int


@value_class
class FeePrice:
    """What a fee asks for each month, or each day, and its folded taxes."""

    monthly: bool
    amount_micro: int
    tax_micro: int


@value_class
class Terms:
    """A plan as numbers. Prices by rate number; 0 where the plan has no such rate.

    `ladders`: rate number, or TOTAL → its rises; `by_meter`: each meter has ladders of its own.
    `fees`: in the plan's order.
    """

    rate_micro: tuple[int, ...]
    surcharge_micro: int
    tax_micro: tuple[int, ...]
    ladders: dict[int, tuple[Rise, ...]]
    by_meter: bool
    fees: tuple[FeePrice, ...]

    @property
    def highest_micro(self) -> int:
        """No unit costs more than this, nor less than its negative; exact need it not be."""
        rises = (rise for ladder in self.ladders.values() for rise in ladder)
        ladders = sum(abs(rise.price_micro) + abs(rise.tax_micro) for rise in rises)
        return max(self.rate_micro) + self.surcharge_micro + max(self.tax_micro) + ladders

    @property
    def is_bare(self) -> bool:
        """Say whether a rate's price is all that it asks."""
        return not (self.surcharge_micro or any(self.tax_micro) or self.ladders)


@value_class
class Folding:
    """A tax on a price as it is exactly (in 10^-6 of the price's unit), and as it is charged."""

    tax: str
    on: str
    exact_ppm: int
    folded_micro: int


def terms_of(plan: Plan) -> Terms:
    """Return a plan's prices and ladders."""
    rates, taxes = [0] * RATES, [0] * RATES
    surcharge_taxes = sum(
        folded(surcharge.price_micro, tax)
        for tax in _taxes_on(plan, "surcharges")
        for surcharge in plan.surcharges
    )
    for name, price_micro in plan.rates_micro.items():
        index = rate_index(name)
        rates[index] = price_micro
        taxes[index] = _tax_on_energy(plan, price_micro) + surcharge_taxes
    ladder = plan.ladder
    ladders: dict[int, tuple[Rise, ...]] = {}
    if ladder is not None and ladder.steps:
        ladders[TOTAL] = tuple(_rises(plan, ladder.steps))
    elif ladder is not None:
        for name, steps in ladder.rate_steps.items():
            ladders[rate_index(name)] = tuple(_rises(plan, steps))
    return Terms(
        tuple(rates),
        sum(surcharge.price_micro for surcharge in plan.surcharges),
        tuple(taxes),
        ladders,
        ladder is not None and ladder.scope == "meter",
        tuple(_fees(plan)),
    )


def climbed(
    rises: Iterable[Rise], share: tuple[int, int], from_milli: int, to_milli: int
) -> tuple[int, int]:
    """Return (what a ladder adds to the energy between two totals of its period, the tax on it).

    `share`: (days, days of the period) that count; each step is as high as their share.
    """
    days, days_of = share
    ladder_nano = tax_nano = 0
    for rise in rises:
        above_milli = rise.above_milli * days // days_of
        steps_milli = max(0, to_milli - above_milli) - max(0, from_milli - above_milli)
        ladder_nano += steps_milli * rise.price_micro
        tax_nano += steps_milli * rise.tax_micro
    return ladder_nano, tax_nano


def foldings(plan: Plan) -> Iterator[Folding]:
    """Yield every tax on a price, for whoever approves a plan to see what folding rounds."""
    ladder = plan.ladder
    energy = [(f"rate {name}", price) for name, price in plan.rates_micro.items()]
    if ladder is not None:
        for where, steps in (("", ladder.steps), *ladder.rate_steps.items()):
            above = f"{where} above".strip()
            energy += [(f"{above} {step.above_milli}", step.add_micro or 0) for step in steps]
    surcharges = [(part.name, part.price_micro) for part in plan.surcharges]
    fees = [(part.name, part.amount_micro) for part in plan.fees]
    for tax in plan.taxes:
        for kind, prices in (("energy", energy), ("surcharges", surcharges), ("fees", fees)):
            if kind in tax.base:
                for on, price_micro in prices:
                    yield Folding(tax.name, on, price_micro * tax.ppm, folded(price_micro, tax))


def folded(price_micro: int, tax: Tax) -> int:
    """Return a tax on a price, to the resolution of prices, half up."""
    return (2 * price_micro * tax.ppm + PPM) // (2 * PPM)


def _taxes_on(plan: Plan, kind: str) -> Iterator[Tax]:
    return (tax for tax in plan.taxes if kind in tax.base)


def _tax_on_energy(plan: Plan, price_micro: int) -> int:
    return sum(folded(price_micro, tax) for tax in _taxes_on(plan, "energy"))


def _fees(plan: Plan) -> Iterator[FeePrice]:
    for fee in plan.fees:
        tax_micro = sum(folded(fee.amount_micro, tax) for tax in _taxes_on(plan, "fees"))
        yield FeePrice(fee.period == "month", fee.amount_micro, tax_micro)


def _rises(plan: Plan, steps: tuple[Step, ...]) -> Iterator[Rise]:
    add_before = tax_before = 0
    for step in steps:
        add = step.add_micro or 0
        tax = _tax_on_energy(plan, add)
        yield Rise(step.above_milli, add - add_before, tax - tax_before)
        add_before, tax_before = add, tax
