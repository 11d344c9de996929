"""`wattvend document`: versions of tariffs and policies, from the draft until they are in force."""

from typing import Annotated
from uuid import uuid4

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from services.common.kernel import filters, names
from tools.cli import show
from tools.cli.asking import Reason, RequestId, run, whole
from wattvend.vending.v1 import documents_pb2 as d
from wattvend.vending.v1 import vending_pb2 as v

document_app = typer.Typer(
    no_args_is_help=True, help="Documents of tariffs and policies: list, show, submit, withdraw."
)
DocumentId = Annotated[str, typer.Argument(help="id of the document")]
Page = Annotated[str, typer.Option(help="token of the page, as the one before told it")]
COLOURS = {
    "draft": "cyan",
    "submitted": "yellow",
    "approved": "yellow",
    "scheduled": "blue",
    "in-force": "green",
    "declined": "red",
    "expired": "red",
    "failed": "red",
}


@document_app.command("list")
def document_list(
    state: Annotated[str, typer.Option(help="e.g. draft, submitted, in-force")] = "",
    kind: Annotated[str, typer.Option(help="tariff, policy")] = "",
    legal_entity: Annotated[str, typer.Option(help="default: all")] = "",
    page: Page = "",
) -> None:
    """List documents, the oldest first."""
    only = filters.wanting(
        state=state, kind=kind, legal_entity=names.LEGAL_ENTITY.name_if(legal_entity)
    )
    request = d.ListDocumentsRequest(filter=only, page_token=page)
    run(lambda clients: clients.documents("ListDocuments", request), show_documents)


@document_app.command("show")
def document_show(document: DocumentId) -> None:
    """Show what a document says, and what became of it."""
    request = d.GetDocumentRequest(name=names.DOCUMENT.name(document))
    run(lambda clients: clients.documents("GetDocument", request), show_document)


@document_app.command("submit")
def document_submit(document: DocumentId, request_id: RequestId = "") -> None:
    """Ask for the publication: done at once where one person may, else another approves it."""
    request = d.SubmitDocumentRequest(
        request_id=request_id or str(uuid4()), name=names.DOCUMENT.name(document)
    )
    run(
        lambda clients: clients.documents("SubmitDocument", request),
        show_document,
        request.request_id,
    )


@document_app.command("withdraw")
def document_withdraw(document: DocumentId, reason: Reason, request_id: RequestId = "") -> None:
    """Let a document not be published, or its version not begin."""
    request = d.WithdrawDocumentRequest(
        request_id=request_id or str(uuid4()), name=names.DOCUMENT.name(document), reason=reason
    )
    run(
        lambda clients: clients.documents("WithdrawDocument", request),
        show_document,
        request.request_id,
    )


def list_versions(parent: str) -> None:
    """Ask for the versions of a tariff or policy, and show them."""
    request = d.ListVersionsRequest(parent=parent)
    run(lambda clients: whole(clients.documents, "ListVersions", request), show_versions)


def coloured(state: str) -> str:
    """Return where something is in its life."""
    return f"[{COLOURS.get(state, 'dim')}]{state}[/]"


def show_document(answer: d.Document) -> RenderableType:
    """Show a document: where it is, who did what, and all that it says."""
    rows = [("state", coloured(answer.state) + (" [red]stale[/]" if answer.stale else ""))]
    rows.append(("of", _of(answer)))
    rows.append(("drafted", f"{answer.drafted_by}, {show.moment(answer.drafted_at_ms)}"))
    base = f"version {answer.base_version}" if answer.base_version else "nothing: it is new"
    rows.append(("drafted on", base))
    for name, text in (
        ("replaces", show.id_of(answer.replaces)),
        ("submitted by", answer.submitted_by),
        ("waits as" if answer.state == "submitted" else "approval", show.id_of(answer.approval)),
        ("decided by", answer.decided_by),
        ("because", answer.reason),
        ("failed", answer.failure_message),
    ):
        if text:
            rows.append((name, escape(text)))
    if answer.published_version:
        rows.append(("version", str(answer.published_version)))
        applies = "was to apply from" if answer.state == "withdrawn" else "applies from"
        rows.append((applies, show.moment(answer.begins_at_ms)))
    fields = show.fields(f"[bold]document {show.id_of(answer.name)}[/]", rows)
    return Group(fields, _says(answer))


def _of(answer: d.Document | d.Version) -> str:
    kind = answer.WhichOneof("content") or ""
    return f"{kind} {escape(show.id_of(getattr(answer, kind).name))}" if kind else "-"


def _says(answer: d.Document) -> RenderableType:
    """Show what would be published, as its publication would be shown."""
    if answer.WhichOneof("content") == "tariff":
        said = {field.name: value for field, value in answer.tariff.ListFields()}
        return show.tariff(v.Tariff(**said, tariff_version=answer.base_version + 1))
    said = {field.name: value for field, value in answer.policy.ListFields()}
    at_ms = said.pop("effective_at_ms", 0)
    when = show.moment(at_ms) if at_ms else "at once"
    policy = show.policy(v.Policy(**said, policy_version=answer.base_version + 1))
    return Group(policy, f"[dim]to apply[/] {when}")


def show_documents(answer: d.ListDocumentsResponse) -> RenderableType:
    """Show a page of documents."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("document", "of", "state", "drafted", "by"):
        table.add_column(name)
    for each in answer.documents:
        table.add_row(
            show.id_of(each.name),
            _of(each),
            coloured(each.state) + (" stale" if each.stale else ""),
            show.moment(each.drafted_at_ms),
            escape(each.drafted_by),
        )
    more = f"more: --page {answer.next_page_token}" if answer.next_page_token else ""
    return Group(table, more or f"{len(answer.documents)} documents")


def show_versions(answer: d.ListVersionsResponse) -> RenderableType:
    """Show the versions of a tariff or policy."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("version", "state", "applies from", "published by", "approved by", "document"):
        table.add_column(name)
    for each in answer.versions:
        table.add_row(
            str(each.number),
            coloured(each.state),
            show.moment(each.begins_at_ms),
            escape(each.published_by),
            escape(each.approved_by) or "-",
            show.id_of(each.document) or "-",
        )
    return table
