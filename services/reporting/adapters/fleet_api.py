"""FleetService: meters and accounts by a filter, and what was read of each meter."""

# ruff: noqa: N802 - names are those of the generated servicer

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from services.common.kernel import filters, names
from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.filters import Filter
from services.common.kernel.ids import column_key
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.reporting.adapters.commits import NOT_PROJECTING, Commits
from services.reporting.adapters.fleet import FIELDS, Fleet
from wattvend.reporting.v1 import fleet_pb2 as pb
from wattvend.reporting.v1 import fleet_pb2_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["FleetService"].full_name
Find = Callable[[Filter, int, str, int], Awaitable[list[asyncpg.Record]]]


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """The servicer. Errors are raised; services.common.runtime.grpc.Guard maps them."""

    def __init__(self, fleet: Fleet, commits: Commits) -> None:
        """Ask `fleet`; `commits` knows how new it is."""
        self._fleet = fleet
        self._commits = commits

    async def ListFleetAccounts(
        self, request: pb.ListFleetAccountsRequest, _: Any
    ) -> pb.ListFleetAccountsResponse:
        """Return a page of accounts that a filter finds."""
        found, token, as_of_ms = await self._page("accounts", request, self._fleet.accounts)
        return pb.ListFleetAccountsResponse(
            accounts=[_account(row) for row in found], next_page_token=token, as_of_ms=as_of_ms
        )

    async def ListFleetMeters(
        self, request: pb.ListFleetMetersRequest, _: Any
    ) -> pb.ListFleetMetersResponse:
        """Return a page of meters that a filter finds."""
        found, token, as_of_ms = await self._page("meters", request, self._fleet.meters)
        return pb.ListFleetMetersResponse(
            meters=[_meter(row) for row in found], next_page_token=token, as_of_ms=as_of_ms
        )

    async def _page(
        self, what: str, request: Any, find: Find
    ) -> tuple[Sequence[asyncpg.Record], str, int]:
        """Return a page, the token of the next, and how new what it was found in was."""
        tree = filters.parse(request.filter, FIELDS)
        size = page_size_of(request.page_size)
        as_of_ms = self._commits.as_of_ms  # taken before the look: what is seen is at least so new
        if not as_of_ms:
            raise Retriable(NOT_PROJECTING)
        listed = ("fleet", what, request.filter)
        cursor = cursor_of(listed, request.page_token, (str,))
        after = str(cursor[0]) if cursor else ""
        found = await find(tree, as_of_ms, after, size + 1)
        token = token_of(listed, (found[size - 1][0],)) if len(found) > size else ""
        return found[:size], token, as_of_ms

    async def ListReadings(
        self, request: pb.ListReadingsRequest, _: Any
    ) -> pb.ListReadingsResponse:
        """Return a page of what was charged of a meter, by its registers."""
        meter_id = names.METER.id("parent", request.parent)
        if request.from_ms >= request.to_ms:
            text = "from_ms must lie before to_ms (ms UTC)"
            raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="from_ms")
        size = page_size_of(request.page_size)
        listed = ("readings", meter_id, str(request.from_ms), str(request.to_ms))
        cursor = cursor_of(listed, request.page_token, (int, int, int)) or (-1, -1, -1)
        after = (int(cursor[0]), int(cursor[1]), int(cursor[2]))
        key = column_key("meter", meter_id)
        found = await self._fleet.readings(key, request.from_ms, request.to_ms, after, size + 1)
        if not found and not await self._fleet.meter_is_known(meter_id):
            text = f"there is no meter {meter_id}"
            raise InvalidInput(Reason.METER_NOT_FOUND, text, field="parent")
        token = token_of(listed, tuple(found[size - 1])[:3]) if len(found) > size else ""
        return pb.ListReadingsResponse(
            readings=[_reading(row) for row in found[:size]], next_page_token=token
        )


def _account(row: asyncpg.Record) -> pb.FleetAccount:
    return pb.FleetAccount(
        name=names.ACCOUNT.name(row["account_id"]),
        site=names.SITE.name(row["site_id"]),
        status=row["status"],
        alarm=row["level"],
        available_nano=str(int(row["available_nano"])),
        currency=row["currency"],
        tariff=names.TARIFF.name(row["tariff_id"]),
        policy=names.POLICY.name(row["policy_id"]),
    )


def _meter(row: asyncpg.Record) -> pb.FleetMeter:
    return pb.FleetMeter(
        name=names.METER.name(row["meter_id"]),
        site=names.SITE.name(row["site_id"]),
        account=names.ACCOUNT.name_if(row["account_id"]),
        status=row["status"],
        alarm=row["level"],
        available_nano=str(int(row["available_nano"])),
        currency=row["currency"],
        online=row["online"],
        last_seen_ms=row["last_seen_ms"],
        mode=row["mode"],
        relay=row["relay"],
    )


def _reading(row: asyncpg.Record) -> pb.ChargedReading:
    return pb.ChargedReading(
        time_ms=row["to_time_ms"],
        register_milli=row["to_register_milli"],
        quality=row["to_quality"],
        from_register_milli=row["from_register_milli"],
        energy_milli=row["energy_milli"],
        price_micro=row["price_micro"],
        amount_nano=row["amount_nano"],
        currency=row["currency"],
        account=names.ACCOUNT.name(row["account_id"]),
        tariff=names.TARIFF.name_if(row["tariff_id"]),
        tariff_version=row["tariff_version"],
        kind=row["kind"],
        epoch=row["epoch"],
        sequence=row["sequence"],
    )
