"""Previews of policies: who is under one, and how he stands."""

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput
from services.common.kernel.names import ACCOUNT, POLICY, SITE
from services.common.kernel.reasons import Reason
from services.common.kernel.units import CURRENCIES, Currency, nano_from_minor
from services.common.policies.rules import Rules
from services.common.policies.rules import read as read_rules
from services.reporting.adapters.previews import ACCOUNTS_MAX
from services.reporting.adapters.queries import Queries
from services.reporting.domain.rows import PolicyVersionRow
from services.reporting.domain.standing import Change, Standing, Thresholds, also_asked, changes
from wattvend.reporting.v1 import previews_pb2 as pb


async def policy(
    queries: Queries, clock: Clock, request: pb.PreviewPolicyRequest
) -> pb.PolicyPreview:
    """Return who would be in another state at once under a policy. Raises InvalidInput."""
    policy_id = POLICY.id("policy", request.policy)
    stands = await _version_in_force(queries, policy_id)
    currency = CURRENCIES[stands.currency]
    rules = read_rules(request.rules if request.HasField("rules") else None)
    known, unknown_count = await _standings(queries, policy_id)
    now, at_ms = _thresholds_of(stands), clock.now_ms()
    told = pb.PolicyPreview(
        accounts_count=len(known),
        unknown_count=unknown_count,
        also_asked=also_asked(rules, at_ms),
        currency=currency.code,
        minor_decimals=currency.minor_decimals,
    )
    if known:
        then = _thresholds_in(request, rules, currency)
        told.accounts.extend(map(_state, changes(known, now, then, at_ms)))
    return told


async def _version_in_force(queries: Queries, policy_id: str) -> PolicyVersionRow:
    found = await queries.rows(
        f"SELECT {', '.join(PolicyVersionRow._fields)} FROM policy_versions "  # noqa: S608 - our own names
        "WHERE policy_id = $1 ORDER BY version DESC LIMIT 1",
        policy_id,
    )
    if not found:
        text = f"there is no policy {policy_id!r}, so nobody is under it"
        raise InvalidInput(Reason.POLICY_NOT_FOUND, text, field="policy")
    return PolicyVersionRow(*found[0])


async def _standings(queries: Queries, policy_id: str) -> tuple[list[Standing], int]:
    """Return the accounts under a policy that are judged, and how many more nobody knows of."""
    lines = await queries.rows(
        "SELECT a.account_id, a.site_id, b.available_nano, b.level, a.keep_power_until_ms, "
        "a.promise_until_ms, coalesce(b.frozen, true) AS is_unknown "
        "FROM accounts a LEFT JOIN account_balances b ON b.account_id = a.account_id "
        "WHERE a.policy_id = $1 AND a.status <> 'closed' "
        "AND EXISTS (SELECT 1 FROM meters m WHERE m.account_id = a.account_id) "
        "ORDER BY a.account_id LIMIT $2",
        policy_id,
        ACCOUNTS_MAX + 1,
    )
    if len(lines) > ACCOUNTS_MAX:
        text = f"more than {ACCOUNTS_MAX} accounts are under it: the answer has no room for them"
        raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="policy")
    known = [line for line in lines if not line["is_unknown"]]
    standings = [
        Standing(
            line["account_id"],
            line["site_id"],
            int(line["available_nano"]),
            line["level"],
            line["keep_power_until_ms"],
            line["promise_until_ms"],
        )
        for line in known
    ]
    return standings, len(lines) - len(known)


def _thresholds_of(version: PolicyVersionRow) -> Thresholds:
    return Thresholds(
        version.alarm_1_nano,
        version.alarm_2_nano,
        -version.overdraft_nano,
        version.restore_nano,
        read_rules(version.rules).hysteresis_nano,
    )


def _thresholds_in(
    request: pb.PreviewPolicyRequest, rules: Rules, currency: Currency
) -> Thresholds:
    return Thresholds(
        nano_from_minor(request.alarm_1_minor, currency),
        nano_from_minor(request.alarm_2_minor, currency),
        -nano_from_minor(request.overdraft_minor, currency),
        nano_from_minor(request.restore_minor, currency),
        rules.hysteresis_nano,
    )


def _state(change: Change) -> pb.PreviewedState:
    standing = change.standing
    return pb.PreviewedState(
        account=ACCOUNT.name(standing.account_id),
        site=SITE.name(standing.site_id),
        available_nano=standing.available_nano,
        level_now=standing.level,
        level_then=change.level_then,
        due_now=change.due_now,
        due_then=change.due_then,
        kept_by=change.kept_by,
    )
