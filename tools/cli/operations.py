"""`wattvend operation`: what goes on in the book after its call was answered, of whatever kind."""

import asyncio
from typing import Annotated, Any

import typer
from google.longrunning import operations_proto_pb2 as lro
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tools.cli import show
from tools.cli.asking import run
from tools.client import Clients

operation_app = typer.Typer(
    no_args_is_help=True,
    help="Operations: openings, refunds, transfers, closings and batches that go on by themselves.",
)
COLLECTION = "operations"
WAIT_S = 5
COLORS = {"goes on": "cyan", "done": "green", "failed": "red"}
Name = Annotated[str, typer.Argument(help="as `operation list` shows it")]


@operation_app.command("list")
def operation_list(
    kind: Annotated[
        str, typer.Option(help="batches, closings, openings, refunds, transfers; default: all")
    ] = "",
    past: Annotated[bool, typer.Option("--past", help="also those that are over")] = False,
    page: Annotated[str, typer.Option(help="token of the page, as the one before told it")] = "",
) -> None:
    """List what goes on, kind by kind, the oldest first."""
    request = lro.ListOperationsRequest(
        name=f"{COLLECTION}/{kind}" if kind else COLLECTION,
        filter="" if past else "done = false",
        page_token=page,
    )
    run(lambda clients: clients.operations("ListOperations", request), listed)


@operation_app.command("show")
def operation_show(operation: Name) -> None:
    """Show how far an operation is, or what came of it."""
    request = lro.GetOperationRequest(name=_name_of(operation))
    run(lambda clients: clients.operations("GetOperation", request), shown)


@operation_app.command("wait")
def operation_wait(operation: Name) -> None:
    """Wait until an operation is over; it goes on whether somebody waits or not."""
    request = lro.WaitOperationRequest(name=_name_of(operation), timeout=Duration(seconds=1))

    async def work(clients: Clients) -> lro.Operation:
        while True:
            now: lro.Operation = await clients.operations(
                "WaitOperation", request, timeout_s=WAIT_S
            )
            if now.done:
                return now
            await asyncio.sleep(0)

    run(work, shown)


def _name_of(typed: str) -> str:
    return typed if typed.startswith(f"{COLLECTION}/") else f"{COLLECTION}/{typed}"


def _state_of(operation: lro.Operation) -> str:
    if not operation.done:
        return "goes on"
    return "failed" if operation.HasField("error") else "done"


def _about(operation: lro.Operation) -> dict[str, Any]:
    """Return what an operation says of itself; nothing where it says nothing."""
    if not operation.metadata.type_url:
        return {}
    return MessageToDict(operation.metadata, preserving_proto_field_name=True)


def _of(about: dict[str, Any]) -> str:
    """Return what an operation is of: its account or, of a batch, its kind."""
    return show.id_of(about["account"]) if "account" in about else str(about.get("kind", ""))


def listed(answer: lro.ListOperationsResponse) -> RenderableType:
    """Show a page of operations."""
    table = Table("operation", "of", "state", "")
    for each in answer.operations:
        state = _state_of(each)
        table.add_row(
            escape(each.name.removeprefix(f"{COLLECTION}/")),
            escape(_of(_about(each))),
            f"[{COLORS[state]}]{state}[/]",
            escape(each.error.message),
        )
    return show.page(table, answer, "nothing goes on")


def shown(answer: lro.Operation) -> RenderableType:
    """Show an operation, by what it says of itself."""
    state, about = _state_of(answer), _about(answer)
    rows = [("state", f"[{COLORS[state]}]{state}[/]")]
    if answer.HasField("error"):
        rows.append(("why", f"[red]{escape(answer.error.message)}[/]"))
    rows += [
        (name.replace("_", " "), escape(value))
        for name, value in about.items()
        if isinstance(value, str) and name != "@type"
    ]
    return show.fields(f"[bold]{escape(answer.name)}[/]", rows)
