"""An account begins: where, by which terms, perhaps with a first sale."""

from services.common.kernel.ids import column_key
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.account_history import evolve
from services.vending.domain.decisions import (
    Accepted,
    Decision,
    Rejection,
    Request,
    first_problem,
    stamp,
)
from services.vending.domain.events.accounts import AccountOpened
from services.vending.domain.policy import Policy, policy_not_found
from services.vending.domain.sale import Sell, sold
from services.vending.domain.site import Site, site_not_found
from services.vending.domain.tariff import Tariff, tariff_not_found


@value_class
class OpenAccount:
    """An account shall exist; with `first_sale_minor` > 0 credit is sold in the same append.

    `site`, `tariff`, `policy`: what those ids stand for, None where nothing. `shard` is for life.
    """

    request: Request
    account_id: str
    site_id: str
    subject_id: str | None
    commodity: str
    tariff_id: str
    policy_id: str
    first_sale_minor: int
    method: str
    shard: int
    site: Site | None
    tariff: Tariff | None
    policy: Policy | None

    def __post_init__(self) -> None:
        """Refuse what no account can be."""
        checks.check_id("account_id", self.account_id)
        checks.check_id("site_id", self.site_id)
        checks.check_id("tariff_id", self.tariff_id)
        checks.check_id("policy_id", self.policy_id)
        checks.check_choice("commodity", self.commodity, checks.COMMODITIES)
        if self.subject_id is not None:
            checks.check_subject(self.subject_id)
        if self.first_sale_minor:
            checks.check_amount("first_sale_minor", self.first_sale_minor)
            checks.check_choice("method", self.method, checks.METHODS)


def open_(command: OpenAccount) -> Decision:
    """Return the account with its first sale, or why it cannot be."""
    site, tariff, policy = command.site, command.tariff, command.policy
    if site is None:
        return site_not_found(command.site_id)
    if tariff is None:
        return tariff_not_found(command.tariff_id)
    if policy is None:
        return policy_not_found(command.policy_id)
    if problem := unfit(site, command.commodity, tariff, policy):
        return problem
    opening = opened(command, site)
    if not command.first_sale_minor:
        return Accepted((opening,))
    state = evolve(None, opening)
    first = Sell(
        command.request,
        command.account_id,
        command.first_sale_minor,
        command.method,
        policy=command.policy,
    )
    sale = sold(state, first)
    return sale if isinstance(sale, Rejection) else Accepted((opening, sale))


def opened(command: OpenAccount, site: Site) -> AccountOpened:
    """Return the event of an account that opens at a site."""
    return AccountOpened(
        **stamp(command.request),
        account_id=command.account_id,
        account_key=column_key("account", command.account_id),
        shard=command.shard,
        site_id=command.site_id,
        subject_id=command.subject_id,
        currency=site.currency,
        minor_decimals=site.minor_decimals,
        ledger_decimals=site.ledger_decimals,
        legal_entity=site.legal_entity,
        commodity=command.commodity,
        tariff_id=command.tariff_id,
        policy_id=command.policy_id,
    )


def account_exists(account_id: str) -> Rejection:
    """Return the refusal to open an account that is there."""
    text = f"account {account_id} exists already; choose another account_id"
    return Rejection(Reason.ALREADY_EXISTS, text, "account_id")


def unfit(site: Site, commodity: str, tariff: Tariff, policy: Policy) -> Rejection | None:
    """Return why an account at a site cannot have a tariff and a policy; None where it can."""
    return first_problem(*misfits(site, commodity, tariff, policy))


def misfits(site: Site, commodity: str, tariff: Tariff, policy: Policy) -> list[Rejection]:
    """Return all that keeps an account at a site from having a tariff and a policy."""

    def same(reason: Reason, what: str, is_: str, wanted: str) -> Rejection | None:
        if is_ == wanted:
            return None
        text = f"{what} is {is_}, the account's is {wanted}: choose one of {wanted}"
        return Rejection(reason, text, what.partition(" ")[0] + "_id")

    problems = (
        same(Reason.CURRENCY_MISMATCH, "tariff currency", tariff.currency, site.currency),
        same(Reason.CURRENCY_MISMATCH, "policy currency", policy.currency, site.currency),
        same(Reason.COMMODITY_MISMATCH, "tariff commodity", tariff.commodity, commodity),
        same(
            Reason.LEGAL_ENTITY_MISMATCH,
            "policy legal entity",
            policy.legal_entity or site.legal_entity,
            site.legal_entity,
        ),
        same(
            Reason.LEGAL_ENTITY_MISMATCH,
            "tariff legal entity",
            tariff.legal_entity,
            site.legal_entity,
        ),
        # Also where the newest version needs no clock: the next one may.
        same(Reason.INVALID_ARGUMENT, "tariff zone", tariff.zone or site.zone, site.zone),
    )
    return [problem for problem in problems if problem]
