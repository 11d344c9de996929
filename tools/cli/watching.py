"""`wattvend alarms`, `exceptions`, `fleet`: what reporting sees."""

from typing import Annotated

import typer

from services.common.kernel import filters, names
from tools.cli import show
from tools.cli.asking import run, whole
from tools.cli.lists import Limit, Page
from wattvend.reporting.v1 import reporting_pb2 as r

PAGE_SIZE = 1000


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
    page: Page = "",
    limit: Limit = 50,
) -> None:
    """List alarms and decisions, newest first."""
    request = r.ListAlarmsRequest(filter=_of(site, account), page_token=page, page_size=limit)
    run(lambda clients: clients.reporting("ListAlarms", request), show.alarms)


def exceptions(  # noqa: PLR0917 - a command line is parsed by name
    site: Annotated[str, typer.Option(help="only of this site")] = "",
    account: Annotated[str, typer.Option(help="only of this account")] = "",
    meter: Annotated[str, typer.Option(help="only of this meter")] = "",
    ended: Annotated[bool, typer.Option("--ended", help="also those that ended")] = False,
    page: Page = "",
    limit: Limit = 50,
) -> None:
    """List what a person has to look at: held readings, flags, cuts that did not follow."""
    request = r.ListExceptionsRequest(
        filter=_of(site, account, meter), ended=ended, page_token=page, page_size=limit
    )
    run(lambda clients: clients.reporting("ListExceptions", request), show.exceptions)


def fleet(
    site: Annotated[str, typer.Option(help="only of this site")] = "",
    lost: Annotated[bool, typer.Option("--lost", help="only what is offline or unknown")] = False,
) -> None:
    """Show every meter: online or not, register, relay wanted and reported."""
    if lost:
        missing = r.ListLostMetersRequest(filter=_of(site), page_size=PAGE_SIZE)
        run(lambda clients: whole(clients.reporting, "ListLostMeters", missing), show.lost)
    else:
        every = r.ListMetersRequest(filter=_of(site), page_size=PAGE_SIZE)
        run(lambda clients: whole(clients.reporting, "ListMeters", every), show.meters)
