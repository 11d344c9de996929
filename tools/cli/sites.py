"""`wattvend site`: set up from a file, placed within another, all cuts held."""

from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from services.common.kernel import names
from tools import sitefile
from tools.cli import lists, show
from tools.cli.asking import RequestId, options, out, run
from tools.client import Clients
from wattvend.vending.v1 import vending_pb2 as v

site_app = typer.Typer(no_args_is_help=True, help="Sites: set up from a file, hold all cuts.")
site_app.command("list")(lists.site_list)


@site_app.command("apply")
def site_apply(
    file: Annotated[Path, typer.Argument(help="YAML file of a site", exists=True, dir_okay=False)],
) -> None:
    """Register what a file describes; applying it again changes nothing."""
    try:
        described = sitefile.read(file)
    except sitefile.SiteFileError as wrong:
        raise typer.BadParameter(str(wrong)) from None

    def said(text: str) -> None:
        if not options.as_json:
            out.print(f"[green]✓[/] {text}")

    async def work(clients: Clients) -> v.Site:
        await sitefile.apply(clients, described, said)
        return v.Site(name=names.SITE.name(described.site.id))

    run(work, lambda site: f"site {show.id_of(site.name)} stands")


@site_app.command("place")
def site_place(
    site: Annotated[str, typer.Argument(help="site id")],
    reason: Annotated[str, typer.Option(help="why; kept in the book")],
    under: Annotated[str, typer.Option(help="site that it lies within")] = "",
    top: Annotated[bool, typer.Option("--top", help="it lies within no other")] = False,
    request_id: RequestId = "",
) -> None:
    """Let a site lie within another, as a floor does in a building: filters know the tree."""
    if bool(under) == top:
        raise typer.BadParameter("give --under, or --top")
    request = v.PlaceSiteRequest(
        request_id=request_id or str(uuid4()),
        name=names.SITE.name(site),
        parent=names.SITE.name_if(under),
        reason=reason,
    )
    run(lambda clients: clients.vending("PlaceSite", request), show.site, request.request_id)


@site_app.command("show")
def site_show(site: Annotated[str, typer.Argument(help="site id")]) -> None:
    """Show what the book says of a site."""
    request = v.GetSiteRequest(name=names.SITE.name(site))
    run(lambda clients: clients.vending("GetSite", request), show.site)


@site_app.command("hold-cuts")
def site_hold(
    site: Annotated[str, typer.Argument(help="site id")],
    reason: Annotated[str, typer.Option(help="why; kept in the book")],
    request_id: RequestId = "",
) -> None:
    """Hold every cut at a site until released. Restores go on."""
    request = v.HoldCutsRequest(
        request_id=request_id or str(uuid4()), name=names.SITE.name(site), reason=reason
    )
    run(lambda clients: clients.vending("HoldCuts", request), show.site, request.request_id)


@site_app.command("release-cuts")
def site_release(
    site: Annotated[str, typer.Argument(help="site id")],
    reason: Annotated[str, typer.Option(help="why; kept in the book")],
    request_id: RequestId = "",
) -> None:
    """Let cuts be sent again."""
    request = v.ReleaseCutsRequest(
        request_id=request_id or str(uuid4()), name=names.SITE.name(site), reason=reason
    )
    run(lambda clients: clients.vending("ReleaseCuts", request), show.site, request.request_id)
