"""Changes of an open account: another tariff, another policy, another tenant.

The account stays what it is: its credit, its meters and its history go on. What a change means for
what is used, metering says: it prices by the account's newest fact.
"""

from services.common.kernel.reasons import Reason
from services.common.kernel.units import format_scaled
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.account import (
    Account,
    account_not_found,
    closing_under_way,
    not_open,
    of_what,
    refund_under_way,
)
from services.vending.domain.account_opening import unfit
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.corrections import arrears_minor, left_minor
from services.vending.domain.decisions import (
    Accepted,
    Decision,
    Rejection,
    Request,
    answered,
    stamp,
)
from services.vending.domain.events.accounts import AccountTenantChanged, AccountTermsChanged
from services.vending.domain.events.event import Event
from services.vending.domain.policy import Policy, policy_not_found
from services.vending.domain.refund import owes
from services.vending.domain.site import Site
from services.vending.domain.tariff import Tariff, tariff_not_found


@value_class
class ChangeTerms:
    """The account shall have another tariff, another policy, or both; None: as it is.

    `site`, `tariff`, `policy`: what the account would stand under, None where there is none;
    `authority`: what one person may do alone at the legal entity.
    """

    request: Request
    account_id: str
    tariff_id: str | None
    policy_id: str | None
    reason: str
    site: Site | None = None
    tariff: Tariff | None = None
    policy: Policy | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what changes nothing, or is not well formed."""
        checks.check_id("account_id", self.account_id)
        if self.tariff_id is not None:
            checks.check_id("tariff_id", self.tariff_id)
        if self.policy_id is not None:
            checks.check_id("policy_id", self.policy_id)
        if self.tariff_id is None and self.policy_id is None:
            raise checks.invalid("tariff_id", "name another tariff, or another policy")
        checks.check_text("reason", self.reason)


@value_class
class ChangeTenant:
    """The account shall be another person's, with its credit and its meters.

    `subject_id` None: nobody is named. `with_owed`: what is owed goes along; else nothing may be.
    """

    request: Request
    account_id: str
    subject_id: str | None
    with_owed: bool
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        if self.subject_id is not None:
            checks.check_subject(self.subject_id)
        checks.check_text("reason", self.reason)


Change = ChangeTerms | ChangeTenant


def decide(state: Account | None, command: Change) -> Decision:
    """Return what a change does, or why nothing may happen."""
    if state is None:
        return account_not_found(command.account_id)
    if earlier := answered(state.answers, command.request):
        return earlier
    changed = not_open(state) or _changed(state, command)
    return Accepted((changed,)) if isinstance(changed, Event) else changed


def _changed(state: Account, command: Change) -> Event | Rejection:
    match command:
        case ChangeTerms():
            return _other_terms(state, command)
        case ChangeTenant():
            return _other_tenant(state, command)


def _other_terms(state: Account, command: ChangeTerms) -> AccountTermsChanged | Rejection:
    tariff_id = command.tariff_id or state.tariff_id
    policy_id = command.policy_id or state.policy_id
    if (tariff_id, policy_id) == (state.tariff_id, state.policy_id):
        text = (
            f"account {state.account_id} has tariff {tariff_id} and policy {policy_id} already; "
            "nothing is to do"
        )
        return Rejection(Reason.NOTHING_CHANGES, text, "account_id")
    assert command.site is not None, "an account stands at a site"
    if command.tariff is None:
        return tariff_not_found(tariff_id)
    if command.policy is None:
        return policy_not_found(policy_id)
    problem = unfit(command.site, state.commodity, command.tariff, command.policy) or needs_another(
        command.authority, Action.ACCOUNT_TERMS, 1, state.currency, command.request
    )
    return problem or AccountTermsChanged(
        **stamp(command.request),
        account_id=state.account_id,
        tariff_id=tariff_id,
        policy_id=policy_id,
        previous_tariff_id=state.tariff_id,
        previous_policy_id=state.policy_id,
        reason=command.reason,
    )


def _other_tenant(state: Account, command: ChangeTenant) -> AccountTenantChanged | Rejection:
    if command.subject_id == state.subject_id:
        text = f"account {state.account_id} is that person's already; nothing is to do"
        return Rejection(Reason.NOTHING_CHANGES, text, "subject_id")
    if state.refunding:
        return refund_under_way(state)
    if closing := closing_under_way(state):  # what its meters used last is the one tenant's
        return closing
    if not command.with_owed and (problem := owes(state.owed) or _in_arrears(state)):
        return problem
    # What the one had, and what the other takes over, changes hands: that may need two.
    problem = needs_another(
        command.authority,
        Action.TRANSFER,
        changes_hands_minor(state),
        state.currency,
        command.request,
    )
    return problem or AccountTenantChanged(
        **stamp(command.request),
        account_id=state.account_id,
        subject_id=command.subject_id,
        previous_subject_id=state.subject_id,
        credited_nano=state.credited_nano,
        charged_nano=state.used.usage.charged_nano,
        emergency_minor=state.owed.emergency_minor,
        debt_minor=state.owed.debt_minor,
        reason=command.reason,
        **of_what(state),
    )


def changes_hands_minor(state: Account) -> int:
    """Return what another tenant takes over: what is left, or used beyond it, and what is owed."""
    owed = state.owed
    return left_minor(state) + arrears_minor(state) + owed.emergency_minor + owed.debt_minor


def _in_arrears(state: Account) -> Rejection | None:
    """Return why an account does not change hands: more was used than is paid; None where not."""
    minor = arrears_minor(state)
    if not minor:
        return None
    arrears = format_scaled(minor, state.minor_decimals)
    text = (
        f"account {state.account_id} is {arrears} in arrears: sell what covers them, write them "
        "off, or say that they go along"
    )
    return Rejection(Reason.ACCOUNT_HAS_DEBT, text, "account_id")
