"""`wattvend account close` and `wattvend closing`: how an account ends, and how far that is."""

from collections.abc import Iterator
from typing import Annotated
from uuid import uuid4

import typer
from google.longrunning import operations_pb2
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from services.common.kernel import names
from services.common.kernel.units import format_scaled
from tools.cli import show
from tools.cli.accounts import AccountId, account_app
from tools.cli.asking import Reason, RequestId, register_milli, run
from tools.client import Clients
from wattvend.vending.v1 import closings_pb2 as c
from wattvend.vending.v1 import vending_pb2 as v

DAY_MS = 86_400_000
ClosingName = Annotated[
    str, typer.Argument(help="its id, or name: accounts/…/closings/…, as `closing list` tells it")
]
closing_app = typer.Typer(
    no_args_is_help=True, help="Closings: see how far they are, give registers, cancel."
)


@account_app.command("close")
def account_close(  # noqa: PLR0917 - a command line is parsed by name
    account: AccountId,
    reason: Annotated[str, typer.Option(help="why; kept in the book")] = "",
    method: Annotated[
        str, typer.Option(help="what is left is paid out by: cash, pos, transfer, qr")
    ] = "",
    meter: Annotated[
        list[str] | None, typer.Option(help="only this meter leaves; may be given again")
    ] = None,
    without_cut: Annotated[
        bool, typer.Option("--without-cut", help="power stays on: the next tenant moves in")
    ] = False,
    days: Annotated[
        int, typer.Option(min=0, max=31, help="until registers may be given; 0: three")
    ] = 0,
    request_id: RequestId = "",
) -> None:
    """Close an account: cut, read and release its meters, settle what is left.

    Without --method it must have no meters, and nothing left; with --meter it stays open.
    """
    asked = request_id or str(uuid4())
    if not (method or meter):
        close = v.CloseAccountRequest(request_id=asked, name=names.ACCOUNT.name(account))
        run(lambda clients: clients.vending("CloseAccount", close), show.account, asked)
        return
    if not reason:
        raise typer.BadParameter("give --reason; it is kept in the book")
    request = c.CreateClosingRequest(
        parent=names.ACCOUNT.name(account),
        request_id=asked,
        meters=[names.METER.name(meter_id) for meter_id in meter or ()],
        method="" if meter else method,
        without_cut=without_cut,
        lasts_ms=days * DAY_MS,
        reason=reason,
    )

    async def work(clients: Clients) -> c.Closing:
        begun: operations_pb2.Operation = await clients.closings("CreateClosing", request)
        closing = c.Closing()
        begun.metadata.Unpack(closing)
        return closing

    run(work, shown, asked)


def _named(name: str) -> str:
    """Return the name of a closing of which perhaps the id alone is known, as a log has it."""
    return name if "/" in name else f"accounts/-/closings/{name}"


@closing_app.command("show")
def closing_show(name: ClosingName) -> None:
    """Show a closing: what it waits for, or what it came to."""
    request = c.GetClosingRequest(name=_named(name))
    run(lambda clients: clients.closings("GetClosing", request), shown)


@closing_app.command("list")
def closing_list(
    account: Annotated[str, typer.Option(help="account id; default: of all")] = "",
    past: Annotated[bool, typer.Option("--past", help="those that are over, too")] = False,
) -> None:
    """List closings that run, the oldest first."""
    request = c.ListClosingsRequest(
        parent=f"accounts/{account or '-'}", filter="" if past else "running = true"
    )
    run(lambda clients: clients.closings("ListClosings", request), listed)


@closing_app.command("cancel")
def closing_cancel(name: ClosingName, reason: Reason, request_id: RequestId = "") -> None:
    """Let a closing not go on: the account is open again, its relays go back."""
    asked = request_id or str(uuid4())
    request = c.CancelClosingRequest(name=_named(name), request_id=asked, reason=reason)
    run(lambda clients: clients.closings("CancelClosing", request), shown, asked)


@closing_app.command("register")
def closing_register(
    name: ClosingName,
    meter: Annotated[str, typer.Argument(help="meter id")],
    reason: Reason,
    register: Annotated[
        str, typer.Option(help="as the display shows it; default: estimated by its habit")
    ] = "",
    request_id: RequestId = "",
) -> None:
    """Let a meter leave at a register, where no reading came before the deadline."""
    asked = request_id or str(uuid4())
    request = c.GiveRegisterRequest(
        name=_named(name),
        request_id=asked,
        meter=names.METER.name(meter),
        register_milli=register_milli(register) if register else None,
        reason=reason,
    )
    run(lambda clients: clients.closings("GiveRegister", request), shown, asked)


@closing_app.command("settle")
def closing_settle(name: ClosingName, request_id: RequestId = "") -> None:
    """Ask anew for the second person that what is paid out needs."""
    asked = request_id or str(uuid4())
    request = c.SettleClosingRequest(name=_named(name), request_id=asked)
    run(lambda clients: clients.closings("SettleClosing", request), shown, asked)


def shown(answer: c.Closing) -> RenderableType:
    """Show a closing."""
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_column(style="dim")
    head.add_column()
    for name, value in _rows(answer):
        head.add_row(name, value)
    meters = Table("meter", "waits for", "since", "leaves at", box=None, pad_edge=False)
    for meter in answer.meters:
        register = (
            format_scaled(meter.register_milli, 3) if meter.HasField("register_milli") else "-"
        )
        since = show.moment(meter.waits_since_ms)
        meters.add_row(escape(meter.meter.removeprefix("meters/")), meter.step, since, register)
    parts: list[RenderableType] = [f"[bold]{escape(answer.name)}[/]", head]
    return Group(*parts, meters) if answer.meters else Group(*parts)


def _rows(answer: c.Closing) -> Iterator[tuple[str, str]]:
    waits = f", waits for {answer.step} since {show.moment(answer.waits_since_ms)}"
    yield "state", answer.state + (waits if answer.step else "")
    if answer.refusal_reason:
        yield "refused", answer.refusal_reason
    yield "closes", "the account" if answer.whole else "some meters, the account stays"
    yield "began", show.moment(answer.began_at_ms)
    yield (
        ("ended", show.moment(answer.ended_at_ms))
        if answer.ended_at_ms
        else (
            "registers may be given from",
            show.moment(answer.deadline_ms),
        )
    )
    if answer.reason:
        yield "reason", escape(answer.reason)
    if answer.HasField("settlement"):
        yield from _settlement(answer.settlement)


def _settlement(told: c.ClosingSettlement) -> Iterator[tuple[str, str]]:
    currency = show.currency_of(told.currency)
    yield "charged in all", show.money(told.charged_nano, told.currency, exact=True)
    for name, minor in (
        ("recovers emergency credit", told.recovered_emergency_minor),
        ("recovers debt", told.recovered_debt_minor),
        ("paid out", told.refund_minor),
        ("lacking", told.due_minor),
        ("owed still", told.debt_left_minor),
    ):
        if minor:
            yield name, f"{format_scaled(minor, currency.minor_decimals)} {told.currency}"
    if told.dropped_nano:
        yield "dropped by rounding", show.money(told.dropped_nano, told.currency, exact=True)
    if told.receipt:
        yield "receipt", told.receipt.removeprefix("receipts/")


def listed(answer: c.ListClosingsResponse) -> RenderableType:
    """Show a list of closings."""
    table = Table("closing", "state", "waits for", "since", "deadline", box=None, pad_edge=False)
    for closing in answer.closings:
        table.add_row(
            escape(closing.name),
            closing.state,
            closing.step or "-",
            show.moment(closing.waits_since_ms),
            show.moment(closing.deadline_ms),
        )
    return table if answer.closings else "no closings"
