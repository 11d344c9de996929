"""What a sale costs besides, and what energy costs: the policy's fee and ceiling, quotes."""

from services.common.kernel.reasons import Reason
from services.common.kernel.units import Currency
from services.common.kernel.values import value_class
from services.common.tariffs import plan as plans
from services.common.tariffs.calendar import is_constant
from services.common.tariffs.plan import PPM, rate_index
from services.common.tariffs.pricing import terms_of
from services.vending.domain.decisions import Rejection
from services.vending.domain.events.prices import TariffPublished
from services.vending.domain.policy import Policy

FREE = 0


@value_class
class Quote:
    """What energy costs: `amount_minor` buys `energy_milli` at `price_micro`, fee included."""

    energy_milli: int
    price_micro: int
    amount_minor: int
    fee_minor: int


def fee_minor_of(policy: Policy | None, amount_minor: int) -> int:
    """Return what of an amount is the service fee: its share half up, and what is fixed."""
    if policy is None:
        return FREE
    return (amount_minor * policy.fee_ppm + PPM // 2) // PPM + policy.fee_minor


def price_micro_of(tariff: TariffPublished | None) -> int | Rejection:
    """Return the one price of a tariff's version, taxes included; or why there is none."""
    if tariff is None:
        return Rejection(Reason.CANNOT_QUOTE, "no version of the account's tariff is in force")
    if tariff.plan is None:
        return tariff.price_micro
    plan = plans.read(tariff.plan)
    if not is_constant(plan):
        return Rejection(
            Reason.CANNOT_QUOTE,
            f"tariff {tariff.tariff_id} has no one price: what a unit costs depends on when it is "
            "used, or on how much was; sell by money",
        )
    terms = terms_of(plan)
    rate = rate_index(next(iter(plan.rates_micro)))
    return terms.rate_micro[rate] + terms.surcharge_micro + terms.tax_micro[rate]


def quote(policy: Policy | None, price_micro: int, energy_milli: int, currency: Currency) -> Quote:
    """Return what energy costs, to the minor unit upwards: what is bought is never less.

    The fee comes on top: the smallest amount of which enough is left after it.
    """
    net_minor = -(-energy_milli * price_micro // currency.nano_per_minor)
    if policy is None:
        return Quote(energy_milli, price_micro, net_minor, FREE)
    # Of a share of half at most one less is never enough, whichever way the fee was rounded.
    amount_minor = (net_minor + policy.fee_minor) * PPM // (PPM - policy.fee_ppm)
    while amount_minor - fee_minor_of(policy, amount_minor) < net_minor:
        amount_minor += 1
    return Quote(energy_milli, price_micro, amount_minor, fee_minor_of(policy, amount_minor))
