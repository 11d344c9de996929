"""What an account owes beside its use: emergency credit, which is lent, and debts."""

from dataclasses import replace

from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.units import INT64_MAX, format_scaled, nano_from_minor
from services.common.kernel.values import value_class
from services.vending.domain import checks, postings
from services.vending.domain.account import Account, no_more, not_open, of_what
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.decisions import Accepted, Decision, Rejection, Request, stamp
from services.vending.domain.events.sales import DebtSet, EmergencyGranted, EmergencyRefused
from services.vending.domain.owed import PPM
from services.vending.domain.policy import Policy


@value_class
class GrantEmergencyCredit:
    """Credit of the account's policy, before it is paid: once, until sales have recovered it.

    `at_most_minor`: what a second person approved, None: it needed none; `policy`: the account's,
    None where there is no account; `authority`: what one person may do alone at the legal entity.
    """

    request: Request
    account_id: str
    policy: Policy | None = None
    at_most_minor: int | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)


@value_class
class SetDebt:
    """What the account shall owe from now on, whatever it owed before; 0 ends it.

    `share_ppm`: of the amount of each sale, what goes to the debt; `reason`: for the books;
    `authority`: what one person may do alone at the legal entity.
    """

    request: Request
    account_id: str
    debt_minor: int
    share_ppm: int
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what no debt can be."""
        checks.check_id("account_id", self.account_id)
        checks.check_between("debt_minor", self.debt_minor, 0, INT64_MAX)
        checks.check_between("share_ppm", self.share_ppm, 1 if self.debt_minor else 0, PPM)
        checks.check_text("reason", self.reason)


def grant(state: Account, command: GrantEmergencyCredit) -> Decision:
    """Return the grant, or that it was refused: that is an event, too."""
    granted = not_open(state) or _granted(state, command)
    if isinstance(granted, EmergencyGranted):
        return Accepted((granted,))
    if granted.reason is Reason.APPROVAL_REQUIRED:
        return granted
    refused = EmergencyRefused(
        **stamp(command.request),
        account_id=state.account_id,
        reason=granted.reason.value,
        message=granted.message,
    )
    return Accepted((refused,))


def _granted(state: Account, command: GrantEmergencyCredit) -> EmergencyGranted | Rejection:
    policy, currency = command.policy, checks.currency_named(state.currency)
    if policy is None:
        raise Bug(f"account {state.account_id} is open and its policy {state.policy_id} is not")
    if owed_minor := state.owed.emergency_minor:
        owed = format_scaled(owed_minor, currency.minor_decimals)
        return Rejection(
            Reason.EMERGENCY_ALREADY_GRANTED,
            f"account {state.account_id} has {owed} of emergency credit to pay back: "
            "the next sale recovers it",
            "account_id",
        )
    if not policy.emergency_nano:
        return Rejection(
            Reason.NO_EMERGENCY_CREDIT,
            f"policy {policy.policy_id} grants no emergency credit: publish a version that does",
            "account_id",
        )
    amount_minor = at_most(policy.emergency_nano // currency.nano_per_minor, command.at_most_minor)
    amount_nano = amount_minor * currency.nano_per_minor
    problem = no_more(state, amount_nano, currency) or needs_another(
        command.authority, Action.EMERGENCY, amount_minor, state.currency, command.request
    )
    if problem:
        return problem
    return EmergencyGranted(
        **stamp(command.request),
        account_id=state.account_id,
        amount_minor=amount_minor,
        amount_nano=amount_nano,
        credited_nano=state.credited_nano + amount_nano,
        policy_id=policy.policy_id,
        policy_version=policy.version,
        **of_what(state),
        postings=postings.of_grant(amount_nano),
    )


def at_most(amount_minor: int, approved_minor: int | None) -> int:
    """Return what of an amount was approved; None: it needed nobody's approval."""
    return amount_minor if approved_minor is None else min(amount_minor, approved_minor)


def grant_named(state: Account, command: GrantEmergencyCredit) -> GrantEmergencyCredit:
    """Return a grant as it is proposed: who approves sees, and approves, how much it is."""
    assert command.policy is not None, "the account's policy was judged"
    nano_per_minor = checks.currency_named(state.currency).nano_per_minor
    return replace(command, at_most_minor=command.policy.emergency_nano // nano_per_minor)


def set_debt(state: Account, command: SetDebt) -> Decision:
    """Return what the account owes from now on, or why not."""
    if problem := not_open(state):
        return problem
    more_minor = command.debt_minor - state.owed.debt_minor
    try:
        more_nano = nano_from_minor(more_minor, checks.currency_named(state.currency))
    except InvalidInput as too_large:
        return Rejection(too_large.reason, too_large.message, "debt_minor")
    if problem := needs_another(
        command.authority,
        Action.DEBT,
        debt_size_minor(state, command),
        state.currency,
        command.request,
    ):
        return problem
    owed = DebtSet(
        **stamp(command.request),
        account_id=state.account_id,
        debt_minor=command.debt_minor,
        share_ppm=command.share_ppm,
        reason=command.reason,
        **of_what(state),
        postings=postings.of_debt(more_nano),
    )
    return Accepted((owed,))


def debt_size_minor(state: Account, command: SetDebt) -> int:
    """Return how much a new debt is about: what is more or less of it, or all by another share."""
    size_minor = abs(command.debt_minor - state.owed.debt_minor)
    if command.share_ppm != state.owed.debt_share_ppm:  # of next to nothing, it is never paid
        size_minor = max(size_minor, state.owed.debt_minor)
    return size_minor
