"""Adjustment runs: whose charges a version would have changed that began too late."""

from services.common.kernel.errors import InvalidInput
from services.common.kernel.frames import BASIS_CLOSED
from services.common.kernel.names import ACCOUNT, SITE, TARIFF
from services.common.kernel.reasons import Reason
from services.common.kernel.units import CURRENCIES
from services.reporting.adapters.previews import ACCOUNTS_MAX, Sampler
from services.reporting.adapters.queries import Queries
from services.reporting.domain.adjusting import (
    CLOSED,
    MOVED,
    NOT_READ,
    OTHER_TARIFF,
    OTHER_TENANT,
    Run,
    amount_minor,
    run_of,
)
from services.reporting.domain.rows import AccountRow, TariffVersionRow
from wattvend.reporting.v1 import previews_pb2 as pb


async def adjustment(
    queries: Queries, request: pb.PreviewAdjustmentRequest
) -> pb.AdjustmentPreview:
    """Return what an adjustment run comes to. Raises InvalidInput."""
    tariff_id, site_id = TARIFF.id("tariff", request.tariff), SITE.id_if("site", request.site)
    found = await queries.rows(
        f"SELECT {', '.join(TariffVersionRow._fields)} FROM tariff_versions "  # noqa: S608 - our own names
        "WHERE tariff_id = $1 AND version <= $2 ORDER BY version",
        tariff_id,
        request.version,
    )
    versions = [TariffVersionRow(*line) for line in found]
    run = run_of(versions, request.version, request.from_ms)
    currency = CURRENCIES[versions[-1].currency]
    told = pb.AdjustmentPreview(
        from_ms=run.was.from_ms,
        to_ms=run.was.to_ms,
        currency=currency.code,
        minor_decimals=currency.minor_decimals,
        commodity=versions[-1].commodity,
    )
    was, would = Sampler(queries, run.was), Sampler(queries, run.would)
    for account in await _accounts(queries, tariff_id, site_id, run):
        before, after = await was.sums(account), await would.sums(account)
        line = pb.AdjustedAccount(
            account=ACCOUNT.name(account.account_id),
            site=SITE.name(account.site_id),
            energy_milli=str(before.energy_milli),
            charged_nano=str(before.draft_nano),
            would_nano=str(after.draft_nano),
            amount_minor=amount_minor(before.draft_nano, after.draft_nano, currency.nano_per_minor),
            left_out=await _left_out(queries, account, tariff_id, run),
        )
        told.accounts.append(line)
        if not line.left_out:
            told.credit_minor += max(line.amount_minor, 0)
            told.debit_minor += max(-line.amount_minor, 0)
    return told


async def _accounts(queries: Queries, tariff_id: str, site_id: str, run: Run) -> list[AccountRow]:
    """Return accounts that are on a tariff, or were charged by it in the time of a run."""
    found = await queries.rows(
        f"SELECT {', '.join(AccountRow._fields)} FROM accounts a "  # noqa: S608 - our own names
        "WHERE ($2 = '' OR site_id = $2) AND (tariff_id = $1 OR EXISTS (SELECT 1 FROM charges c "
        "WHERE c.account_key = a.account_key AND c.to_time_ms > $3 AND c.from_time_ms < $4 "
        "AND c.tariff_id = $1)) ORDER BY account_id LIMIT $5",
        tariff_id,
        site_id,
        run.was.from_ms,
        run.was.to_ms,
        ACCOUNTS_MAX + 1,
    )
    if len(found) > ACCOUNTS_MAX:
        text = f"more than {ACCOUNTS_MAX} accounts: ask site by site"
        raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="site")
    return [AccountRow(*line) for line in found]


async def _left_out(queries: Queries, account: AccountRow, tariff_id: str, run: Run) -> str:
    """Return why a person has to look at an account; "" where nothing speaks against it."""
    if account.status != "open":
        return CLOSED
    (found,) = await queries.rows(
        "SELECT bool_or(c.tariff_id <> $2) AS other, "
        "bool_or(EXISTS (SELECT 1 FROM price_lines p WHERE p.meter_key = c.meter_key "
        "AND p.epoch = c.epoch AND p.sequence = c.sequence AND p.basis & $5 <> 0)) AS moved, "
        "(SELECT bool_or($4 > coalesce((SELECT max(r.to_time_ms) FROM charges r "
        "WHERE r.meter_key = m.meter_key), 0)) FROM meters m WHERE m.account_id = $6) AS unread, "
        "EXISTS (SELECT 1 FROM ledger l WHERE l.stream = 'account-' || $6 "
        "AND l.type = 'account-tenant-changed' AND l.occurred_at_ms > $3) AS tenant "
        "FROM charges c WHERE c.account_key = $1 AND c.account_revision <> -1 "
        "AND c.to_time_ms > $3 AND c.from_time_ms < $4 AND c.kind <> 'fee'",
        account.account_key,
        tariff_id,
        run.was.from_ms,
        run.was.to_ms,
        BASIS_CLOSED,
        account.account_id,
    )
    reasons = {
        OTHER_TENANT: found["tenant"],
        OTHER_TARIFF: found["other"] or account.tariff_id != tariff_id,
        MOVED: found["moved"],
        NOT_READ: found["unread"],
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
