"""`wattvend alarms`, `exceptions`, `fleet`: what reporting sees."""

from typing import Annotated

import typer

from services.common.kernel import filters, names
from tools.cli import show
from tools.cli.asking import run
from tools.client import Clients
from wattvend.reporting.v1 import reporting_pb2 as r


def _of(site: str, account: str = "", meter: str = "") -> str:
    """Return the filter of what is of a site, an account, a meter; "": of any."""
    return filters.wanting(
        site=names.SITE.name_if(site),
        account=names.ACCOUNT.name_if(account),
        meter=names.METER.name_if(meter),
    )


def alarms(
    site: Annotated[str, typer.Option(help="only of this site")] = "",
    account: Annotated[str, typer.Option(help="only of this account")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="how many, newest first")] = 50,
) -> None:
    """List alarms and decisions, newest first."""
    request = r.ListAlarmsRequest(filter=_of(site, account), page_size=limit)
    run(lambda clients: clients.reporting("ListAlarms", request), show.alarms)


def exceptions(
    site: Annotated[str, typer.Option(help="only of this site")] = "",
    account: Annotated[str, typer.Option(help="only of this account")] = "",
    meter: Annotated[str, typer.Option(help="only of this meter")] = "",
    ended: Annotated[bool, typer.Option("--ended", help="also those that ended")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="how many, newest first")] = 50,
) -> None:
    """List what a person has to look at: held readings, flags, cuts that did not follow."""
    request = r.ListExceptionsRequest(
        filter=_of(site, account, meter), ended=ended, page_size=limit
    )
    run(lambda clients: clients.reporting("ListExceptions", request), show.exceptions)


def fleet(
    site: Annotated[str, typer.Option(help="only of this site")] = "",
    lost: Annotated[bool, typer.Option("--lost", help="only what is offline or unknown")] = False,
) -> None:
    """Show every meter: online or not, register, relay wanted and reported."""

    async def all_meters(clients: Clients) -> r.ListMetersResponse:
        found = r.ListMetersResponse()
        token = ""
        while True:
            page: r.ListMetersResponse = await clients.reporting(
                "ListMeters",
                r.ListMetersRequest(filter=_of(site), page_size=1000, page_token=token),
            )
            found.meters.extend(page.meters)
            if not (token := page.next_page_token):
                return found

    if lost:
        request = r.ListLostMetersRequest(filter=_of(site), page_size=1000)
        run(lambda clients: clients.reporting("ListLostMeters", request), show.lost)
    else:
        run(all_meters, show.meters)
