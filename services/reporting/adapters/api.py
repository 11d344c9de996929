"""wattvend.reporting.v1: requests checked, questions asked, answers filled."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import column_key
from services.common.kernel.reasons import Reason
from services.common.tariffs import plan as plans
from services.reporting.adapters import messages
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.explanations import (
    balance_state,
    explain_balance,
    explain_charge,
    explain_cutoff,
)
from services.reporting.adapters.listing import Listing
from services.reporting.adapters.previews import (
    ACCOUNTS_MAX,
    PERIOD_MS_MAX,
    TIME_MS_MAX,
    preview,
)
from services.reporting.adapters.queries import Queries
from services.reporting.domain.whatif import Draft
from wattvend.reporting.v1 import reporting_pb2 as pb
from wattvend.reporting.v1 import reporting_pb2_grpc

VISIBLE_WITHIN_S = 2.0
"""How long GetBalance waits for min_revision."""
PREVIEWS_MAX = 2
"""Previews at once, the others wait: each has a reader's connection for long."""


class ReportingServicer(Listing, reporting_pb2_grpc.ReportingServiceServicer):
    """The handlers. Errors are raised; the server's guard answers with them."""

    def __init__(self, queries: Queries, commits: Commits) -> None:
        super().__init__(queries)
        self._commits = commits
        self._previews = asyncio.Semaphore(PREVIEWS_MAX)

    async def GetBalance(  # noqa: N802 - the method's name in the proto
        self, request: pb.GetBalanceRequest, _: Any
    ) -> pb.Balance:
        """Return an account's balance, waiting for `min_revision` where it is given."""
        account_id = names.BALANCE.id("name", request.name)
        if request.HasField("min_revision"):
            return messages.balance(await self._visible(account_id, request.min_revision))
        found = await self._queries.balance(account_id)
        if found is None:
            await self._account_must_be_known(account_id)
            raise _not_yet(f"metering has not published a balance of account {account_id} yet")
        return messages.balance(found)

    async def _visible(self, account_id: str, revision: int) -> asyncpg.Record:
        found = None
        with self._commits.watching(account_id) as woken:
            try:
                async with asyncio.timeout(VISIBLE_WITHIN_S):
                    while True:
                        woken.clear()
                        found = await self._queries.balance(account_id)
                        if found is not None and found["account_revision"] >= revision:
                            return found
                        await woken.wait()
            except TimeoutError:
                pass
        shown = "nothing of it" if found is None else f"revision {found['account_revision']}"
        raise _not_yet(
            f"account {account_id} is not visible at revision {revision} after "
            f"{VISIBLE_WITHIN_S:g} s; reporting has {shown}"
        )

    async def GetConsumption(  # noqa: N802
        self, request: pb.GetConsumptionRequest, _: Any
    ) -> pb.Consumption:
        """Return what was charged in a period, a line a meter, epoch and account."""
        if bool(request.account) == bool(request.meter):
            raise _wrong("give account or meter, one of the two", "account")
        if request.from_ms >= request.to_ms:
            raise _wrong("from_ms must lie before to_ms (ms UTC)", "from_ms")
        if request.account:
            account_id = names.ACCOUNT.id("account", request.account)
            await self._account_must_be_known(account_id)
            column, key = "account_key", column_key("account", account_id)
        else:
            meter_id = names.METER.id("meter", request.meter)
            await self._meter_must_be_known(meter_id)
            column, key = "meter_key", column_key("meter", meter_id)
        lines = await self._queries.consumption(column, key, request.from_ms, request.to_ms)
        return messages.consumption(lines)

    async def ExplainCutoff(  # noqa: N802
        self, request: pb.ExplainCutoffRequest, _: Any
    ) -> pb.CutoffExplanation:
        """Return what a cut followed from, and what was done about it."""
        alarm_id = UUID(names.ALARM.id("alarm", request.alarm)) if request.alarm else None
        account_id = names.ACCOUNT.id_if("account", request.account)
        if not (account_id or alarm_id):
            raise _wrong("name an account, or an alarm", "account")
        cut = await self._queries.cut(account_id, alarm_id)
        if cut is None:
            if account_id:
                await self._account_must_be_known(account_id)
            whose = f" of account {account_id}" if account_id else ""
            asked = (
                f"there is no cut {alarm_id}{whose}"
                if alarm_id
                else f"account {account_id} was never cut off"
            )
            raise InvalidInput(
                Reason.NO_CUTOFF,
                asked,
                field="alarm" if alarm_id else "account",
            )
        return await explain_cutoff(self._queries, cut)

    async def ExplainCharge(  # noqa: N802
        self, request: pb.ExplainChargeRequest, _: Any
    ) -> pb.ChargeExplanation:
        """Return what a charge was computed from."""
        if request.account:
            return await self._explain_fees(request)
        meter_id = names.METER.id("meter", request.meter)
        if (request.epoch == 0) != (request.sequence == 0):
            raise _wrong("give epoch and sequence, or neither for the newest charge", "sequence")
        charge = await self._queries.charge(
            column_key("meter", meter_id), request.epoch or None, request.sequence or None
        )
        if charge is None:
            await self._meter_must_be_known(meter_id)
            which = f"charge {request.sequence} of epoch {request.epoch}"
            raise InvalidInput(
                Reason.CHARGE_NOT_FOUND,
                f"meter {meter_id} has no {which if request.sequence else 'charge yet'}",
                field="sequence",
            )
        return await explain_charge(self._queries, charge)

    async def _explain_fees(self, request: pb.ExplainChargeRequest) -> pb.ChargeExplanation:
        account_id = names.ACCOUNT.id("account", request.account)
        if request.meter or request.epoch:
            raise _wrong("an account's fees have no meter and epoch 0", "account")
        key = column_key("account", account_id)
        charge = await self._queries.charge(key, None, request.sequence or None)
        if charge is None:
            await self._account_must_be_known(account_id)
            raise InvalidInput(
                Reason.CHARGE_NOT_FOUND,
                f"account {account_id} has no posting {request.sequence or ''} of fees",
                field="sequence",
            )
        return await explain_charge(self._queries, charge)

    async def ExplainBalance(  # noqa: N802
        self, request: pb.ExplainBalanceRequest, _: Any
    ) -> pb.BalanceExplanation:
        """Return what a balance consists of."""
        account_id = names.ACCOUNT.id("account", request.account)
        sequence = request.account_sequence if request.HasField("account_sequence") else None
        state = await balance_state(self._queries, account_id, sequence)
        if state is None:
            await self._account_must_be_known(account_id)
            raise _not_yet(f"metering has not published a balance of account {account_id} yet")
        return await explain_balance(self._queries, state)

    async def PreviewTariff(  # noqa: N802
        self, request: pb.PreviewTariffRequest, _: Any
    ) -> pb.TariffPreview:
        """Return what a draft would have charged for what was recorded."""
        draft = Draft(_drafted(request), request.from_ms, request.to_ms)
        if not (
            0 <= request.from_ms < request.to_ms <= TIME_MS_MAX
            and request.to_ms - request.from_ms <= PERIOD_MS_MAX
        ):
            days = PERIOD_MS_MAX // 86_400_000
            raise _wrong(f"from_ms lies before to_ms (ms UTC), by at most {days} days", "from_ms")
        account_ids = [names.ACCOUNT.id("accounts", name) for name in request.accounts]
        site_id = names.SITE.id_if("site", request.site)
        tariff_id = names.TARIFF.id_if("tariff", request.tariff)
        if not (account_ids or site_id or tariff_id):
            raise _wrong("name accounts, a site or a tariff", "accounts")
        accounts = await self._queries.previewed(account_ids, site_id, tariff_id, ACCOUNTS_MAX + 1)
        if len(accounts) > ACCOUNTS_MAX:
            raise _wrong(f"more than {ACCOUNTS_MAX} accounts: ask for fewer", "accounts")
        for missing in sorted(set(account_ids) - {account.account_id for account in accounts}):
            await self._account_must_be_known(missing)
        async with self._previews:
            return await preview(self._queries, draft, accounts)

    async def _meter_must_be_known(self, meter_id: str) -> None:
        if not await self._queries.meter_is_known(meter_id):
            raise InvalidInput(
                Reason.METER_NOT_FOUND, f"there is no meter {meter_id}", field="meter_id"
            )

    async def _account_must_be_known(self, account_id: str) -> None:
        if not await self._queries.account_is_known(account_id):
            raise InvalidInput(
                Reason.ACCOUNT_NOT_FOUND, f"there is no account {account_id}", field="account_id"
            )


def _wrong(message: str, field: str) -> InvalidInput:
    return InvalidInput(Reason.INVALID_ARGUMENT, message, field=field)


def _drafted(request: pb.PreviewTariffRequest) -> plans.Plan:
    if request.HasField("plan") == request.HasField("price_micro"):
        raise _wrong("give a plan or a price_micro, one of the two", "plan")
    if request.HasField("plan"):
        return plans.read(request.plan)
    if not 0 <= request.price_micro <= plans.PRICE_MICRO_MAX:
        raise _wrong(f"a price lies in 0..{plans.PRICE_MICRO_MAX}", "price_micro")
    return plans.flat(request.price_micro)


def _not_yet(message: str) -> InvalidInput:
    """Not a fault of the input, but the one error family that carries a reason (UNAVAILABLE)."""
    return InvalidInput(Reason.NOT_YET_VISIBLE, f"{message}: try again in a moment")
