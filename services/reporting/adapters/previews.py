"""Previews of a tariff: recorded intervals, account by account, under a draft."""

from collections.abc import Sequence

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.reporting.adapters import messages
from services.reporting.adapters.queries import Queries
from services.reporting.domain.rows import AccountRow
from services.reporting.domain.whatif import (
    ACCOUNT,
    Draft,
    Owner,
    Preview,
    Sums,
    Timelines,
    fees_owed,
)
from wattvend.reporting.v1 import reporting_pb2 as pb

PERIOD_MS_MAX = 400 * 86_400_000
"""As far back as charges are kept."""
TIME_MS_MAX = 4_102_444_800_000
"""The year 2100: no reading is from then."""
ACCOUNTS_MAX = 10_000
"""What an answer has room for."""
_TIMELINE_STEP_MS = 64 * 86_400_000
"""Accounts whose first intervals begin about the same time share a timeline."""


async def preview(
    queries: Queries, draft: Draft, accounts: Sequence[AccountRow]
) -> pb.TariffPreview:
    """Return what accounts were charged, and would have been. Raises InvalidInput."""
    units = {(account.commodity, account.currency) for account in accounts}
    if len(units) > 1:
        raise InvalidInput(
            Reason.CURRENCY_MISMATCH,
            f"the accounts are charged in {', '.join(' '.join(unit) for unit in sorted(units))}, "
            "which have no sum: ask for fewer",
            field="account_ids",
        )
    commodity, currency = next(iter(units), ("", ""))
    total, sampler = Sums(), Sampler(queries, draft)
    told = pb.TariffPreview(
        currency=currency,
        commodity=commodity,
        minor_decimals=messages.minor_decimals(currency),
    )
    for account in accounts:
        sums = await sampler.sums(account)
        total.add(sums)
        told.accounts.append(_line(account, sums))
    told.total.CopyFrom(_line(None, total))
    told.charges = sampler.count
    return told


class Sampler:
    """Tries a draft on accounts; those whose intervals begin about the same time share a timeline.

    `count`: of the charges that were read.
    """

    def __init__(self, queries: Queries, draft: Draft) -> None:
        self.count = 0
        self._queries = queries
        self._draft = draft
        self._timelines: dict[int, Timelines] = {}

    async def sums(self, account: AccountRow) -> Sums:
        """Return what an account used and paid, and would have paid."""
        queries, draft, key = self._queries, self._draft, account.account_key
        begins_ms = await queries.first_begin_ms(key, draft.from_ms, draft.to_ms, cuts=draft.cuts)
        begins_ms = draft.from_ms if begins_ms is None else begins_ms
        reads_from_ms = draft.reads_from_ms(begins_ms)
        step = min(begins_ms, reads_from_ms) // _TIMELINE_STEP_MS
        if step not in self._timelines:
            self._timelines[step] = draft.timelines(step * _TIMELINE_STEP_MS)
        owners = await _owners(queries, draft, account)
        of_account = Preview(draft, self._timelines[step], *owners)
        async for charges in queries.recorded(key, reads_from_ms, draft.to_ms, cuts=draft.cuts):
            for charge in charges:
                of_account.add(charge)
            self.count += len(charges)
        return of_account.sums(await _fees(queries, draft, account))


async def _owners(
    queries: Queries, draft: Draft, account: AccountRow
) -> tuple[dict[Owner, int], dict[tuple[int, int], int]]:
    """Return `since_ms` and `came` of a preview."""
    ladder = draft.plan.ladder
    if ladder is None:
        return {}, {}
    if ladder.scope == "meter":
        stays = await queries.stays(account.account_key)
        since_ms = {(meter, came): at_ms for (meter, _), (came, at_ms) in stays.items()}
        return since_ms, {meter_epoch: came for meter_epoch, (came, _) in stays.items()}
    began_ms, _ = await queries.lived_ms(account.account_id)
    return {ACCOUNT: began_ms}, {}


async def _fees(queries: Queries, draft: Draft, account: AccountRow) -> tuple[int, int]:
    if not draft.plan.fees:
        return 0, 0
    return fees_owed(draft, *await queries.lived_ms(account.account_id))


def _line(account: AccountRow | None, sums: Sums) -> pb.PreviewedAccount:
    return pb.PreviewedAccount(
        account=names.ACCOUNT.name(account.account_id) if account else "",
        site=names.SITE.name(account.site_id) if account else "",
        energy_milli=str(sums.energy_milli),
        charged_nano=str(sums.charged_nano),
        draft_nano=str(sums.draft_nano),
        difference_nano=str(sums.draft_nano - sums.charged_nano),
        rate_nano=str(sums.rate_nano),
        surcharge_nano=str(sums.surcharge_nano),
        ladder_nano=str(sums.ladder_nano),
        fee_nano=str(sums.fee_nano),
        tax_nano=str(sums.tax_nano),
    )
