"""`wattvend account open` and `wattvend opening`: accounts with their meters, by one or by file."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from google.protobuf.message import Message
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from services.common.kernel import names
from services.common.kernel.units import CURRENCIES
from tools import sitefile
from tools.cli import show
from tools.cli.accounts import account_app
from tools.cli.asking import (
    OUTCOME_UNKNOWN,
    Reason,
    RequestId,
    account_of,
    amount_of,
    minor_of,
    register_milli,
    run,
)
from tools.cli.files import rows_of
from tools.client import Clients, Refused
from wattvend.vending.v1 import openings_pb2 as o

opening_app = typer.Typer(
    no_args_is_help=True, help="Openings: prepare one, start it, open many by file."
)
COLUMNS = ("account", "site", "tariff", "policy")
MORE_COLUMNS = ("meters", "sale", "method", "subject", "commodity")
AGAIN = "again"
"""The column whose word makes a line another request: to open what was cancelled or refused."""
AT_ONCE_MAX = 8
OPEN, ENDED = "open", ("cancelled", "refused")
COLORS = {"open": "green", "prepared": "cyan", "would open": "green", "would be prepared": "cyan"}

AccountId = Annotated[str, typer.Argument(help="id of the account")]
Meters = Annotated[
    list[str],
    typer.Option(help="ID, or ID=REGISTER; default: the last charged; may be repeated"),
]
Method = Annotated[str, typer.Option(help="cash, pos, transfer, qr")]
Subject = Annotated[str, typer.Option(help="opaque id of the person, never a name")]
Sale = Annotated[str, typer.Option(help="first sale, e.g. 100.00")]
Currency = Annotated[str, typer.Option(help="of the first sale, ISO 4217")]


@account_app.command("open")
def account_open(  # noqa: PLR0917 - a command line is parsed by name
    account: Annotated[str, typer.Argument(help="id of the new account")],
    site: Annotated[str, typer.Option(help="site id")],
    tariff: Annotated[str, typer.Option(help="tariff id")],
    policy: Annotated[str, typer.Option(help="policy id")],
    meter: Meters = [],  # noqa: B006
    sale: Sale = "",
    method: Method = "cash",
    currency: Currency = "CNY",
    subject: Subject = "",
    commodity: str = "electricity",
    request_id: RequestId = "",
) -> None:
    """Open an account with its meters and its first sale, in one command."""
    plan = _opening(
        site=site, tariff=tariff, policy=policy, meters=meter, commodity=commodity, subject=subject
    )
    request = _creation(request_id, account, plan)
    if sale:
        request.opening.first_sale.CopyFrom(_sale(sale, method, currency))
    _open("CreateOpening", request)


@opening_app.command("prepare")
def opening_prepare(  # noqa: PLR0917 - a command line is parsed by name
    account: Annotated[str, typer.Argument(help="id of the account that is to come")],
    site: Annotated[str, typer.Option(help="site id")],
    tariff: Annotated[str, typer.Option(help="tariff id")],
    policy: Annotated[str, typer.Option(help="policy id")],
    meter: Meters = [],  # noqa: B006
    subject: Subject = "",
    commodity: str = "electricity",
    request_id: RequestId = "",
) -> None:
    """Prepare an account, all but its first sale: nothing opens, no meter moves."""
    plan = _opening(
        site=site, tariff=tariff, policy=policy, meters=meter, commodity=commodity, subject=subject
    )
    request = _creation(request_id, account, plan)
    request.prepare_only = True
    run(lambda clients: clients.openings("CreateOpening", request), shown, request.request_id)


@opening_app.command("start")
def opening_start(  # noqa: PLR0917 - a command line is parsed by name
    account: AccountId,
    sale: Sale = "",
    method: Method = "cash",
    currency: Currency = "CNY",
    subject: Annotated[str, typer.Option(help="opaque id; default: as prepared")] = "",
    request_id: RequestId = "",
) -> None:
    """Open what is prepared, with its meters and its first sale: one click."""
    request = o.StartOpeningRequest(
        request_id=request_id or str(uuid4()),
        name=names.OPENING.name(account),
        subject_id=subject,
    )
    if sale:
        request.first_sale.CopyFrom(_sale(sale, method, currency))
    _open("StartOpening", request)


def _creation(request_id: str, account: str, opening: o.Opening) -> o.CreateOpeningRequest:
    return o.CreateOpeningRequest(
        request_id=request_id or str(uuid4()), opening_id=account, opening=opening
    )


def _open(method: str, request: o.CreateOpeningRequest | o.StartOpeningRequest) -> None:
    """Ask for an open account, and show it as it is then."""

    async def work(clients: Clients) -> dict[str, Message]:
        opened: o.Opening = await clients.openings(method, request)
        return {"opening": opened, "account": await account_of(clients, _told(opened))}

    run(work, _opened, request.request_id, in_steps=True)


@opening_app.command("cancel")
def opening_cancel(account: AccountId, reason: Reason, request_id: RequestId = "") -> None:
    """Let what is prepared not be opened."""
    request = o.CancelOpeningRequest(
        request_id=request_id or str(uuid4()), name=names.OPENING.name(account), reason=reason
    )
    run(lambda clients: clients.openings("CancelOpening", request), shown, request.request_id)


@opening_app.command("show")
def opening_show(account: AccountId) -> None:
    """Show how far an opening is."""
    request = o.GetOpeningRequest(name=names.OPENING.name(account))
    run(lambda clients: clients.openings("GetOpening", request), shown)


@opening_app.command("list")
def opening_list(
    page: Annotated[str, typer.Option(help="token of the page, as the one before told it")] = "",
) -> None:
    """List what is prepared or started, the oldest first."""
    request = o.ListOpeningsRequest(page_token=page)
    run(lambda clients: clients.openings("ListOpenings", request), _listed)


@opening_app.command("batch")
def opening_batch(
    file: Annotated[
        Path, typer.Argument(help="CSV, as docs/accounts.md says", exists=True, dir_okay=False)
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what would happen, and all that is wrong")
    ] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="open none, prepare each")] = False,
    currency: Currency = "CNY",
) -> None:
    """Open an account a line of a file. Run again, it goes on: nothing is done twice."""
    lines = _read(file, currency, prepare=prepare)
    repeated = {name for name, times in Counter(_keys(lines)).items() if times > 1}

    async def work(clients: Clients) -> o.ListOpeningsResponse:
        bound = asyncio.Semaphore(AT_ONCE_MAX)

        async def one(line: _Line) -> None:
            async with bound:
                await _do(clients, line, repeated, dry_run=dry_run)

        await asyncio.gather(*map(one, lines))
        return o.ListOpeningsResponse(openings=[line.result for line in lines])

    run(work, lambda _: _results(lines, dry_run=dry_run))
    if any(line.wrong or line.result.left_out for line in lines):
        raise typer.Exit(1)


@dataclass
class _Line:
    """A line of a file; `wrong`: why nothing came of it, `result`: what did."""

    number: int
    request: o.CreateOpeningRequest
    wrong: list[str]
    result: o.Opening


def _read(file: Path, currency: str, *, prepare: bool) -> list[_Line]:
    """Return the lines of a CSV file, each with what cannot be read in it."""
    rows = rows_of(file)
    _, columns = next(rows, (1, []))
    _check_columns(columns)
    return [_line(number, columns, row, currency, prepare=prepare) for number, row in rows]


def _check_columns(columns: Sequence[str]) -> None:
    for found, of in (
        (set(COLUMNS).difference(columns), "is missing"),
        (set(columns).difference(COLUMNS, MORE_COLUMNS, [AGAIN]), "is unknown"),
        ({column for column in columns if columns.count(column) > 1}, "is there twice"),
    ):
        if found:
            known = f"{', '.join(COLUMNS)}, and perhaps {', '.join((*MORE_COLUMNS, AGAIN))}"
            text = f"the column {', '.join(sorted(found))} {of}; write {known}"
            raise typer.BadParameter(text)


def _line(
    number: int, columns: Sequence[str], row: Sequence[str], currency: str, *, prepare: bool
) -> _Line:
    """Return a line. Its request id derives from what it says, so it is the same run after run."""
    told = dict(zip(columns, row, strict=False))
    said = {column: told.get(column, "") for column in (*COLUMNS, *MORE_COLUMNS)}
    again = filter(None, [told.get(AGAIN)])
    wrong = _misshapen(columns, row)
    wrong += [f"{column} is empty" for column in COLUMNS if not said[column]]
    request = o.CreateOpeningRequest(
        request_id=sitefile.request_id("opening", prepare, currency, *said.values(), *again),
        opening_id=said["account"],
        prepare_only=prepare,
    )
    try:
        request.opening.CopyFrom(
            _opening(
                site=said["site"],
                tariff=said["tariff"],
                policy=said["policy"],
                meters=said["meters"].split(),
                commodity=said["commodity"] or "electricity",
                subject=said["subject"],
            )
        )
    except typer.BadParameter as unreadable:
        wrong.append(unreadable.message)
    try:
        if said["sale"]:
            sale = _sale(said["sale"], said["method"] or "cash", currency)
            request.opening.first_sale.CopyFrom(sale)
    except typer.BadParameter as unreadable:
        wrong.append(unreadable.message)
    if prepare and said["sale"]:
        wrong.append("what is prepared has no sale: it is said at the start")
    return _Line(number, request, wrong, o.Opening())


def _misshapen(columns: Sequence[str], row: Sequence[str]) -> list[str]:
    """Return what is wrong with a line's cells: of 1,000.00 without quotes, only 1 is the sale."""
    if len(row) == len(columns):
        return []
    found = f"it has {len(row)} cells, of {len(columns)} columns"
    return [f"{found}; write each, also an empty one, and an amount without commas"]


def _keys(lines: Sequence[_Line]) -> list[str]:
    """Return what may stand in one line only: accounts, and meters."""
    accounts = [f"account {line.request.opening_id}" for line in lines]
    meters = [each.meter for line in lines for each in line.request.opening.meters]
    return accounts + [f"meter {show.id_of(name)}" for name in meters]


async def _do(clients: Clients, line: _Line, repeated: set[str], *, dry_run: bool) -> None:
    """Open what a line says, or, in a dry run, ask what would be wrong with it."""
    twice = repeated.intersection(_keys([line]))
    line.wrong += [f"{name} is in more than one line" for name in sorted(twice)]
    if not line.wrong or dry_run:
        await _ask(clients, line, dry_run=dry_run)
    if not line.result.account:
        line.result.account = names.ACCOUNT.name(line.request.opening_id)
    del line.result.problems[:]
    line.result.problems.extend(o.OpeningProblem(message=why) for why in line.wrong)


async def _ask(clients: Clients, line: _Line, *, dry_run: bool) -> None:
    request = o.CreateOpeningRequest()
    request.CopyFrom(line.request)
    request.validate_only = dry_run
    try:
        line.result.CopyFrom(await clients.openings("CreateOpening", request))
    except Refused as refused:
        again = "; run the file again" if refused.code in OUTCOME_UNKNOWN else ""
        line.wrong.append(f"{refused.message} [{refused.reason or refused.code}]{again}")
        return
    line.wrong += [f"{each.message} [{each.reason}]" for each in line.result.problems]
    if line.result.status in ENDED:
        told = "if it shall be done after all, write a word that is new there, e.g. 2, into its"
        line.wrong.append(f"it was {line.result.status}; {told} column {AGAIN}")


def _results(lines: Sequence[_Line], *, dry_run: bool) -> RenderableType:
    table = Table("line", "account", "meters", "result")
    for line in lines:
        verb = "would be prepared" if line.request.prepare_only else "would open"
        status = verb if dry_run else line.result.status
        told = "\n".join(f"[red]{escape(each)}[/]" for each in line.wrong)
        left_out = "\n".join(
            f"[yellow]without {escape(show.id_of(each.meter))}: {escape(each.message)}[/]"
            for each in line.result.left_out
        )
        fine = f"[{COLORS.get(status, 'yellow')}]{status}[/]"
        meters = len(line.request.opening.meters)
        table.add_row(
            str(line.number),
            escape(line.request.opening_id),
            str(meters),
            told or "\n".join(filter(None, (fine, left_out))),
        )
    bad = sum(bool(line.wrong) for line in lines)
    count = f"{len(lines) - bad} of {len(lines)} lines {'are right' if dry_run else 'are done'}"
    hint = "; correct the others and run the file again: nothing is done twice" if bad else ""
    return Group(table, f"[{'red' if bad else 'green'}]{count}{hint}[/]")


def _opening(
    *, site: str, tariff: str, policy: str, meters: Sequence[str], commodity: str, subject: str
) -> o.Opening:
    return o.Opening(
        site=names.SITE.name(site),
        subject_id=subject,
        commodity=commodity,
        tariff=names.TARIFF.name(tariff),
        policy=names.POLICY.name(policy),
        meters=[_meter(text) for text in meters],
    )


def _meter(text: str) -> o.OpeningMeter:
    """Return a meter as typed: its id, or ID=REGISTER."""
    meter_id, is_said, register = text.partition("=")
    return o.OpeningMeter(
        meter=names.METER.name(meter_id),
        register_milli=register_milli(register) if is_said else None,
    )


def _sale(sale: str, method: str, currency: str) -> o.FirstSale:
    known = CURRENCIES.get(currency)
    if known is None:
        raise typer.BadParameter(f"{currency!r} is no currency; known are {', '.join(CURRENCIES)}")
    amount_minor = minor_of(amount_of(sale), known.minor_decimals)
    return o.FirstSale(amount_minor=amount_minor, method=method, currency=currency)


def _told(opened: o.Opening) -> str:
    """Return the account that is open. Raises Refused where it could not be opened after all."""
    if opened.status != OPEN and opened.problems:
        why = opened.problems[0]
        raise Refused("FAILED_PRECONDITION", why.reason, why.message)
    return show.id_of(opened.account)


def _opened(answer: dict[str, Any]) -> RenderableType:
    left_out = "\n".join(
        f"[yellow]without {escape(show.id_of(each.meter))}[/]: {escape(each.message)}"
        for each in answer["opening"].left_out
    )
    account = show.account(answer["account"])
    return Group(account, left_out) if left_out else account


def shown(answer: o.Opening) -> RenderableType:
    """Show how far an opening is."""
    meters = ", ".join(show.id_of(each.meter) for each in answer.meters)
    rows = [
        ("status", f"[{COLORS.get(answer.status, 'yellow')}]{answer.status}[/]"),
        ("site", escape(show.id_of(answer.site))),
        ("tariff", escape(show.id_of(answer.tariff))),
        ("policy", escape(show.id_of(answer.policy))),
        ("meters", escape(meters)),
        *([("operation", escape(answer.operation))] if answer.operation else []),
        *[("wrong", f"[red]{escape(each.message)}[/]") for each in answer.problems],
        *[("without", escape(f"{show.id_of(m.meter)}: {m.message}")) for m in answer.left_out],
    ]
    return show.fields(f"[bold]opening of {escape(show.id_of(answer.account))}[/]", rows)


def _listed(answer: o.ListOpeningsResponse) -> RenderableType:
    table = Table("account", "status", "site", "meters")
    for each in answer.openings:
        account, site = show.id_of(each.account), show.id_of(each.site)
        table.add_row(escape(account), each.status, escape(site), str(len(each.meters)))
    more = f"more: --page {answer.next_page_token}" if answer.next_page_token else ""
    return Group(table, more) if more else table
