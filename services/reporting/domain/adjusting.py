"""An adjustment run: what a price from a past instant on would have changed, account by account."""

from collections.abc import Sequence

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.tariffs import plan as plans
from services.common.tariffs.plan import Plan
from services.reporting.domain.rows import TariffVersionRow
from services.reporting.domain.whatif import Draft, InForce

CLOSED, OTHER_TENANT, OTHER_TARIFF = "closed", "other-tenant", "other-tariff"
NOT_READ, MOVED = "not-read", "moved"
"""Why an account is left to a person: nothing can be adjusted; it was another person's, or not
under the tariff, for part of the time; a meter has not been read since the version began; energy
was moved between periods."""


@value_class
class Run:
    """What is compared: the time from when a version should have begun until it did.

    `was`: the version before, under which all of it was charged; `would`: that version.
    """

    was: Draft
    would: Draft


def run_of(versions: Sequence[TariffVersionRow], number: int, from_ms: int) -> Run:
    """Return what an adjustment run compares. Raises InvalidInput.

    `versions`: those of the tariff up to `number`, ascending.
    """
    if number < 1:
        text = (
            f"version: {number} is none; write that of the tariff which begins, or began, too late"
        )
        raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="version")
    version = next((each for each in versions if each.version == number), None)
    before = [each for each in versions if each.version < number]
    if version is None or not before:
        text = f"there is no version {number} that another was before; list the tariff's versions"
        raise InvalidInput(Reason.TARIFF_NOT_FOUND, text, field="version")
    to_ms, previous = version.effective_at_ms, before[-1]
    if not previous.effective_at_ms <= from_ms < to_ms:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"version {number} began at {to_ms}, version {previous.version} before it at "
            f"{previous.effective_at_ms}: write an instant from that one on and before this one; "
            "what lies further back is a run of its own",
            field="from_ms",
        )
    in_force = InForce(plan_of(previous), tuple(each.effective_at_ms for each in versions))
    was, would = (Draft(plan_of(each), from_ms, to_ms, in_force) for each in (previous, version))
    return Run(was, would)


def plan_of(version: TariffVersionRow) -> Plan:
    """Return what a version charges."""
    return plans.flat(version.price_micro) if version.plan is None else plans.read(version.plan)


def amount_minor(charged_nano: int, would_nano: int, nano_per_minor: int) -> int:
    """Return what is credited (below 0: taken back), to the minor unit in the account's favour."""
    return -((would_nano - charged_nano) // nano_per_minor)
