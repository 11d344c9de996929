"""The lists of wattvend.reporting.v1: pages, filters, tokens."""

# ruff: noqa: N802 - names are those of the generated servicer

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from google.protobuf.message import Message

from services.common.kernel import filters
from services.common.kernel.errors import InvalidInput
from services.common.kernel.filters import Filter
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.reporting.adapters import lists, messages
from services.reporting.adapters.lists import Known
from services.reporting.adapters.queries import Queries
from services.reporting.domain.rows import TABLES, PolicyVersionRow, TariffVersionRow
from wattvend.reporting.v1 import reporting_pb2 as pb

M = TypeVar("M", bound=Message)
ByName = Callable[[Queries, Filter, str, int], Awaitable[list[asyncpg.Record]]]


class Listing:
    """Their methods of ReportingService."""

    def __init__(self, queries: Queries) -> None:
        """Ask `queries`."""
        self._queries = queries

    async def ListAlarms(self, request: pb.ListAlarmsRequest, _: Any) -> pb.ListAlarmsResponse:
        """Return decisions of metering, newest first."""
        size = page_size_of(request.page_size)
        listed = ("alarms", request.filter)
        after = _after(listed, request.page_token)
        of = filters.parse(request.filter, lists.ALARMS.fields)
        found = await lists.alarms(self._queries, of, after, size + 1)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = token_of(listed, (last.decided_at_ms, str(last.alarm_id)))
        return pb.ListAlarmsResponse(
            alarms=map(messages.alarm, found[:size]), next_page_token=token
        )

    async def ListExceptions(
        self, request: pb.ListExceptionsRequest, _: Any
    ) -> pb.ListExceptionsResponse:
        """Return what a person has to look at, newest first."""
        size = page_size_of(request.page_size)
        listed = ("exceptions", request.filter, str(request.ended))
        after = _after(listed, request.page_token)
        of = filters.parse(request.filter, lists.LASTING.fields)
        found = await lists.exceptions(self._queries, of, after, size + 1, ended=request.ended)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = token_of(listed, (last["since_ms"], str(last["exception_id"])))
        return pb.ListExceptionsResponse(
            exceptions=map(messages.exception, found[:size]), next_page_token=token
        )

    async def ListMeters(self, request: pb.ListMetersRequest, _: Any) -> pb.ListMetersResponse:
        """Return meters in order of their names: seen, charged, wanted, reported."""
        page = await self._page(request, "meter_id", lists.METERS, lists.meters, messages.meter)
        return pb.ListMetersResponse(meters=page[0], next_page_token=page[1])

    async def ListLostMeters(
        self, request: pb.ListLostMetersRequest, _: Any
    ) -> pb.ListLostMetersResponse:
        """Return devices that do not answer or that nobody registered, in order of their names."""
        page = await self._page(request, "device_id", lists.LOST, lists.lost, messages.lost)
        return pb.ListLostMetersResponse(devices=page[0], next_page_token=page[1])

    async def ListSites(self, request: pb.ListSitesRequest, _: Any) -> pb.ListSitesResponse:
        """Return sites in order of their names."""
        page = await self._page(request, "site_id", lists.SITES, lists.sites, messages.site)
        return pb.ListSitesResponse(sites=page[0], next_page_token=page[1])

    async def ListAccounts(
        self, request: pb.ListAccountsRequest, _: Any
    ) -> pb.ListAccountsResponse:
        """Return accounts in order of their names: as the book has them, and their balances."""
        known, rows = lists.ACCOUNTS, lists.accounts
        page = await self._page(request, "account_id", known, rows, messages.account)
        return pb.ListAccountsResponse(accounts=page[0], next_page_token=page[1])

    async def ListTariffs(self, request: pb.ListTariffsRequest, _: Any) -> pb.ListTariffsResponse:
        """Return the newest version of each tariff in order of their names."""
        page = await self._page(request, "tariff_id", lists.TARIFFS, lists.tariffs, _tariff)
        return pb.ListTariffsResponse(tariffs=page[0], next_page_token=page[1])

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, _: Any
    ) -> pb.ListPoliciesResponse:
        """Return the newest version of each policy in order of their names."""
        page = await self._page(request, "policy_id", lists.POLICIES, lists.policies, _policy)
        return pb.ListPoliciesResponse(policies=page[0], next_page_token=page[1])

    async def _page(
        self,
        request: Any,
        order: str,
        known: Known,
        rows: ByName,
        message: Callable[[asyncpg.Record], M],
    ) -> tuple[list[M], str]:
        """Return a page of what is in order of a column of names, and the token of the next."""
        size = page_size_of(request.page_size)
        listed = (order, request.filter)
        cursor = cursor_of(listed, request.page_token, (str,))
        of = filters.parse(request.filter, known.fields)
        found = await rows(self._queries, of, str(cursor[0]) if cursor else "", size + 1)
        token = token_of(listed, (found[size - 1][order],)) if len(found) > size else ""
        return [message(line) for line in found[:size]], token


def _tariff(line: asyncpg.Record) -> pb.TariffVersion:
    columns = TABLES[TariffVersionRow].columns
    return messages.tariff(TariffVersionRow(*(line[column] for column in columns)))


def _policy(line: asyncpg.Record) -> pb.PolicyVersion:
    columns = TABLES[PolicyVersionRow].columns
    return messages.policy(PolicyVersionRow(*(line[column] for column in columns)))


def _after(listed: Sequence[str], token: str) -> tuple[int, UUID] | None:
    """Return what a page of decisions begins after: (decided_at_ms, alarm id)."""
    cursor = cursor_of(listed, token, (int, str))
    if cursor is None:
        return None
    try:
        return int(cursor[0]), UUID(str(cursor[1]))
    except ValueError as odd:
        text = "page_token is none that this list gave out"
        raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="page_token") from odd
