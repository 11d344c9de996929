"""`wattvend batch`: one command for many meters or accounts, drafted, previewed, submitted."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from google.longrunning import operations_proto_pb2 as lro
from google.protobuf.duration_pb2 import Duration
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.common.kernel import names
from services.common.kernel.units import format_scaled
from tools.cli import show
from tools.cli.asking import (
    Reason,
    RequestId,
    account_of,
    amount_of,
    err,
    instant_ms,
    minor_of,
    options,
    run,
)
from tools.cli.files import rows_of
from tools.client import Clients, Refused
from wattvend.reporting.v1 import fleet_pb2 as f
from wattvend.vending.v1 import batches_pb2 as b
from wattvend.vending.v1 import vending_pb2 as v

batch_app = typer.Typer(
    no_args_is_help=True, help="Batches: one command for many meters or accounts."
)
ON_METERS = ("force-off", "force-on", "restore-prepaid", "export")
WAIT_S = 5
PREVIEW_TIMEOUT_S = 120.0
"""Ten thousand targets are read and judged one by one."""
BatchId = Annotated[str, typer.Argument(help="id of the batch")]
Page = Annotated[str, typer.Option(help="token of the page, as the one before told it")]
COLORS = {
    "draft": "cyan",
    "running": "green",
    "paused": "yellow",
    "cancelled": "red",
    "done": "green",
    "refused": "red",
    "skipped": "yellow",
}


@batch_app.command("create")
def batch_create(  # noqa: PLR0917 - a command line is parsed by name
    kind: Annotated[
        str,
        typer.Argument(
            help="force-off, force-on, restore-prepaid, sale, adjustment, price, policy, export"
        ),
    ],
    reason: Reason,
    target: Annotated[
        list[str], typer.Option(help="a meter or account, or ID=AMOUNT; may be repeated")
    ] = [],  # noqa: B006
    file: Annotated[
        Path | None, typer.Option(help="CSV: an id a line, and its amount", exists=True)
    ] = None,
    filter_: Annotated[
        str, typer.Option("--filter", help="""e.g. 'alarm = cut AND site_tree = sites/mall-1'""")
    ] = "",
    amount: Annotated[str, typer.Option(help="of each that names none, e.g. 50.00")] = "",
    method: Annotated[str, typer.Option(help="of a sale: cash, pos, transfer, qr")] = "",
    tariff: Annotated[str, typer.Option(help="of a price: id of the tariff they get")] = "",
    policy: Annotated[str, typer.Option(help="of a policy: id of the policy they get")] = "",
    begin: Annotated[
        str, typer.Option("--from", help="of an export: this terminal's clock, '2027-01-01 00:00'")
    ] = "",
    end: Annotated[str, typer.Option("--to", help="of an export: the end, which is past")] = "",
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="only say whether it could be drafted")
    ] = False,
    request_id: RequestId = "",
) -> None:
    """Draft a batch: its targets are chosen and frozen; nothing is carried out."""
    request = request_id or str(uuid4())
    each = listed_in(target, file)
    if bool(each) == bool(filter_):
        raise typer.BadParameter("choose the targets by --filter, or list them")
    collection = "meters" if kind in ON_METERS else "accounts"

    async def work(clients: Clients) -> b.Batch:
        has_amounts = bool(amount) or any(each.values())
        decimals = await _decimals(clients, collection, each, filter_) if has_amounts else 0
        drafted: b.Batch = await clients.batches(
            "CreateBatch",
            b.CreateBatchRequest(
                request_id=request,
                kind=kind,
                reason=reason,
                **_selection(filter_, collection, each, decimals),
                amount_minor=minor_of(amount_of(amount), decimals) if amount else None,
                method=method,
                tariff=names.TARIFF.name_if(tariff),
                policy=names.POLICY.name_if(policy),
                from_ms=instant_ms(begin) if begin else None,
                to_ms=instant_ms(end) if end else None,
                validate_only=validate_only,
            ),
            timeout_s=PREVIEW_TIMEOUT_S,
        )
        return drafted

    run(work, shown, request)


def listed_in(targets: list[str], file: Path | None) -> dict[str, str]:
    """Return id → amount, "" where none is said, as options and a file list them.

    Leaves with what is wrong, an id that is named twice too: nobody knows which amount is meant.
    """
    each: dict[str, str] = {}
    for where, id_, amount in (*_typed(targets), *(_in_file(file) if file else ())):
        if id_ in each:
            raise typer.BadParameter(f"{where}: {id_} is named twice; name each once")
        each[id_] = amount
    return each


def _typed(targets: list[str]) -> Iterator[tuple[str, str, str]]:
    for text in targets:
        id_, _, amount = text.partition("=")
        yield "--target", id_, amount


def _in_file(file: Path) -> Iterator[tuple[str, str, str]]:
    for number, cells in rows_of(file):
        where = f"{file}, line {number}"
        if number == 1 and cells[0].lower() in ("id", "account", "meter"):
            continue
        if len(cells) > 2 or not cells[0]:
            raise typer.BadParameter(f"{where}: write an id, or an id and amount")
        yield where, cells[0], cells[1] if len(cells) > 1 else ""


def _selection(
    filter_: str, collection: str, each: dict[str, str], decimals: int
) -> dict[str, Any]:
    if filter_:
        return {"filter": filter_}
    found = b.BatchTargets()
    for id_, said in each.items():
        amount_minor = minor_of(amount_of(said), decimals) if said else None
        found.targets.add(name=f"{collection}/{id_}", amount_minor=amount_minor)
    return {"list": found}


async def _decimals(clients: Clients, collection: str, each: dict[str, str], filter_: str) -> int:
    """Return the decimals of the currency of the first account: all of a batch have one."""
    if collection == "meters":
        raise Refused("INVALID_ARGUMENT", "INVALID_ARGUMENT", "amounts are of accounts, not meters")
    if each:
        known: v.Account = await account_of(clients, next(iter(each)))
        return known.minor_decimals
    page: f.ListFleetAccountsResponse = await clients.fleet(
        "ListFleetAccounts", f.ListFleetAccountsRequest(filter=filter_, page_size=1)
    )
    return show.currency_of(page.accounts[0].currency if page.accounts else "").minor_decimals


@batch_app.command("preview")
def batch_preview(batch: BatchId) -> None:
    """Show what a draft would do, by the rules that decide each command. Nothing happens."""
    request = b.PreviewBatchRequest(name=names.BATCH.name(batch))
    run(
        lambda clients: clients.batches("PreviewBatch", request, timeout_s=PREVIEW_TIMEOUT_S),
        previewed,
    )


@batch_app.command("submit")
def batch_submit(
    batch: BatchId,
    wait: Annotated[bool, typer.Option("--wait", help="until every target has its result")] = False,
    request_id: RequestId = "",
) -> None:
    """Let a draft be carried out; a large one becomes a proposal for a second person."""
    request = b.SubmitBatchRequest(
        request_id=request_id or str(uuid4()), name=names.BATCH.name(batch)
    )

    async def work(clients: Clients) -> b.Batch:
        await clients.batches("SubmitBatch", request)
        return await (_waited(clients, batch) if wait else batch_of(clients, batch))

    run(work, shown, request.request_id, in_steps=wait)


@batch_app.command("wait")
def batch_wait(batch: BatchId) -> None:
    """Wait until every target of a batch has its result, or it was cancelled."""
    run(lambda clients: _waited(clients, batch), shown)


async def batch_of(clients: Clients, batch: str) -> b.Batch:
    """Return a batch."""
    found: b.Batch = await clients.batches(
        "GetBatch", b.GetBatchRequest(name=names.BATCH.name(batch))
    )
    return found


async def _waited(clients: Clients, batch: str) -> b.Batch:
    """Wait for a batch's operation, with a bar that shows how far it is."""
    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
    )
    wait = lro.WaitOperationRequest(name=f"operations/batches/{batch}", timeout=Duration(seconds=1))
    with Progress(*columns, console=err, disable=options.as_json, transient=True) as bar:
        task = bar.add_task("")
        while True:
            operation = await clients.operations("WaitOperation", wait, timeout_s=WAIT_S)
            now = b.Batch()
            operation.metadata.Unpack(now)
            left = now.summary.waiting_count
            total = now.summary.targets_count
            bar.update(task, description=_pacing(now), total=total, completed=total - left)
            if operation.done:
                return await batch_of(clients, batch)
            await asyncio.sleep(0)


def _pacing(now: b.Batch) -> str:
    """Return where a batch is, and until when it waits for its sites."""
    waits = [pace.next_at_ms for pace in now.paces]
    if now.status != "running" or not waits or min(waits) <= time.time() * 1000:
        return now.status
    until = datetime.fromtimestamp(min(waits) // 1000, UTC).astimezone()
    return f"waits until {until:%H:%M:%S}"


@batch_app.command("list")
def batch_list(
    filter_: Annotated[str, typer.Option("--filter", help="""e.g. 'status = "running"'""")] = "",
    page: Page = "",
) -> None:
    """List batches, the oldest first."""
    request = b.ListBatchesRequest(filter=filter_, page_token=page)
    run(lambda clients: clients.batches("ListBatches", request), listed)


@batch_app.command("pause")
def batch_pause(batch: BatchId, reason: Reason, request_id: RequestId = "") -> None:
    """Let no further round begin until it is resumed."""
    request = b.PauseBatchRequest(
        request_id=request_id or str(uuid4()), name=names.BATCH.name(batch), reason=reason
    )
    run(lambda clients: clients.batches("PauseBatch", request), shown, request.request_id)


@batch_app.command("resume")
def batch_resume(batch: BatchId, reason: Reason, request_id: RequestId = "") -> None:
    """Let a paused batch go on."""
    request = b.ResumeBatchRequest(
        request_id=request_id or str(uuid4()), name=names.BATCH.name(batch), reason=reason
    )
    run(lambda clients: clients.batches("ResumeBatch", request), shown, request.request_id)


@batch_app.command("cancel")
def batch_cancel(batch: BatchId, reason: Reason, request_id: RequestId = "") -> None:
    """Let no further round begin, ever: what was done stays."""
    request = b.CancelBatchRequest(
        request_id=request_id or str(uuid4()), name=names.BATCH.name(batch), reason=reason
    )
    run(lambda clients: clients.batches("CancelBatch", request), shown, request.request_id)


@batch_app.command("results")
def batch_results(
    batch: BatchId,
    filter_: Annotated[str, typer.Option("--filter", help="""e.g. 'outcome = "refused"'""")] = "",
    page: Page = "",
) -> None:
    """List the targets of a batch with what came of each; of a draft: what would."""
    request = b.ListBatchResultsRequest(
        parent=names.BATCH.name(batch), filter=filter_, page_token=page
    )

    async def work(clients: Clients) -> b.ListBatchResultsResponse:
        found: b.ListBatchResultsResponse = await clients.batches(
            "ListBatchResults", request, timeout_s=PREVIEW_TIMEOUT_S
        )
        return found

    run(work, results)


# --- what a person reads --------------------------------------------------------------------------


def _colored(word: str) -> str:
    return f"[{COLORS[word]}]{word}[/]" if word in COLORS else word


def _money(minor: int, currency: str) -> str:
    known = show.currency_of(currency)
    return f"{format_scaled(minor, known.minor_decimals)} {currency}"


def shown(answer: b.Batch, file: str = "") -> RenderableType:
    """Show a batch. `file`: what became of an export's."""
    counts = answer.summary
    does = answer.method or show.id_of(answer.tariff) or show.id_of(answer.policy)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = [
        ("batch", show.id_of(answer.name) or "could be drafted; nothing was kept"),
        ("kind", f"{answer.kind} {escape(does)}".rstrip()),
        ("status", _colored(answer.status)),
        ("reason", escape(answer.reason)),
        ("targets", f"{counts.targets_count} of {escape(show.id_of(answer.legal_entity))}"),
        ("amounts", _money(answer.total_minor, answer.currency) if answer.total_minor else ""),
        ("time", _time(answer)),
        ("readings", f"{counts.rows_count:,}" if answer.HasField("from_ms") else ""),
        ("file", escape(file)),
        ("waits for", f"[yellow]{escape(answer.waits_for)}[/]" if answer.waits_for else ""),
        ("chosen by", escape(answer.filter)),
        ("as of", show.moment(answer.as_of_ms) if answer.as_of_ms else ""),
        (
            "done",
            f"{counts.done_count}, refused {counts.refused_count}, "  # noqa: ISC004 - one text
            f"skipped {counts.skipped_count}, waiting {counts.waiting_count}",
        ),
        ("created by", f"{escape(answer.created_by)}, {show.moment(answer.created_at_ms)}"),
        ("submitted by", escape(answer.submitted_by)),
        ("approved by", escape(answer.approved_by)),
        ("last said", escape(answer.last_reason)),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, value)
    return Group(table, _paces(answer)) if answer.paces else table


def _time(answer: b.Batch) -> str:
    if not answer.HasField("from_ms"):
        return ""
    return f"{show.moment(answer.from_ms)} to {show.moment(answer.to_ms)}"


def _paces(answer: b.Batch) -> Table:
    table = Table(header_style="bold", title="waits for the sites' budgets", title_justify="left")
    for name in ("site", "waiting", "a minute", "next", "last"):
        table.add_column(name)
    for pace in answer.paces:
        table.add_row(
            escape(show.id_of(pace.site)),
            str(pace.waiting_count),
            str(pace.per_minute),
            show.moment(pace.next_at_ms),
            show.moment(pace.last_at_ms),
        )
    return table


def listed(answer: b.ListBatchesResponse) -> RenderableType:
    """Show batches."""
    table = Table(header_style="bold")
    table.add_column("id", no_wrap=True)  # it is typed, or copied, whole
    for name in ("created", "kind", "status", "done", "by"):
        table.add_column(name, overflow="fold")
    for each in answer.batches:
        table.add_row(
            show.id_of(each.name),
            show.moment(each.created_at_ms),
            each.kind,
            _colored(each.status),
            f"{each.summary.done_count}/{each.summary.targets_count}",
            escape(each.created_by),
        )
    return show.page(table, answer, "no batches")


def previewed(answer: b.BatchPreview) -> RenderableType:
    """Show what a draft would do."""
    counted = Table(header_style="bold")
    counted.add_column("what")
    counted.add_column("targets", justify="right")
    for counts in (answer.outcomes, answer.reasons, answer.states, answer.sites):
        for each in counts:
            counted.add_row(escape(each.value), str(each.count))
        counted.add_section()
    if answer.batch.HasField("from_ms"):
        counted.add_row("readings", f"{answer.rows_count:,}")
    if answer.needs_approval:
        approval = f"[yellow]when it is submitted: {escape(answer.needs_approval)}[/]"
    else:
        approval = "one person may submit it"
    first = b.ListBatchResultsResponse(results=answer.first, currency=answer.batch.currency)
    return Group(shown(answer.batch), counted, results(first), approval)


def _amount(result: b.BatchResult, currency: str) -> str:
    """Return what a target gets: money, or a file with so many readings."""
    if result.HasField("rows_count"):
        return f"{result.rows_count:,} readings"
    return _money(result.amount_minor, currency) if result.HasField("amount_minor") else ""


def results(answer: b.ListBatchResultsResponse) -> RenderableType:
    """Show targets with what came of each."""
    table = Table(header_style="bold")
    for name in ("target", "site", "amount", "outcome", "why"):
        table.add_column(name, overflow="fold")
    for each in answer.results:
        table.add_row(
            escape(show.id_of(each.target)),
            escape(show.id_of(each.site)),
            _amount(each, answer.currency),
            _colored(each.outcome),
            escape(f"{each.reason} {each.message}".strip()),
        )
    return show.page(table, answer, "none")
