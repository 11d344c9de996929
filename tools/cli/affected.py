"""Who is affected by a version: before it is published, and where it began too late."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from google.protobuf.message import Message
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from services.common.kernel import names
from services.common.kernel.units import format_scaled
from services.common.tariffs import plan as plans
from tools import sitefile
from tools.cli import batches, documents, show
from tools.cli.asking import instant_ms, pages, run, whole
from tools.client import Clients, Refused
from wattvend.reporting.v1 import previews_pb2 as p
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import batches_pb2 as b
from wattvend.vending.v1 import documents_pb2 as d
from wattvend.vending.v1 import vending_pb2 as v

PREVIEW_TIMEOUT_S = 600.0
"""A month of ten thousand accounts takes minutes."""
SHOWN_MAX = 20
"""Of accounts; --json has all of them."""
WHY_LEFT_OUT = {
    "closed": "it is closed",
    "other-tenant": "it was another person's for part of the time",
    "other-tariff": "it was not under this tariff all the time",
    "not-read": "a meter has not been read since the version began",
    "moved": "energy was moved between periods",
}
ALSO_ASKED = {
    "grace": "the grace period passes",
    "notice": "a notice goes out first",
    "qualities": "a fresh reading of a quality that may cut says so",
    "no-cut-window": "the window without cuts, which runs now, is over",
}


@documents.document_app.command("preview")
def document_preview(document: documents.DocumentId) -> None:
    """Show who a draft affects: last month's charges under a price, or states under a policy."""
    request = d.GetDocumentRequest(name=names.DOCUMENT.name(document))
    warnings: list[str] = []

    async def work(clients: Clients) -> Message:
        drafted: d.Document = await clients.documents("GetDocument", request)
        if drafted.WhichOneof("content") != "tariff":
            return await _of_policy(clients, drafted)
        answer = await _of_tariff(clients, drafted)
        if drafted.tariff.HasField("plan"):
            zone = plans.read(drafted.tariff.plan).zone
            warnings.extend(await _elsewhere(clients, zone, {a.site for a in answer.accounts}))
        return answer

    def shown(answer: Message) -> RenderableType:
        if isinstance(answer, r.TariffPreview):
            return Group(of_tariff(answer), *warnings)
        assert isinstance(answer, p.PolicyPreview)
        return of_policy(answer)

    run(work, shown)


async def _elsewhere(clients: Clients, zone: str, sites: Iterable[str]) -> list[str]:
    """Return a warning for each site whose wall clock is not the plan's."""
    found = []
    for name in sorted(sites):
        site: v.Site = await clients.vending("GetSite", v.GetSiteRequest(name=name))
        if site.zone != zone:
            found.append(
                f"[red]{show.id_of(name)} is in {site.zone}; its accounts would be charged by the "
                f"wall clock of {zone}[/]: give them a tariff of their own first (a batch of kind "
                "price)"
            )
    return found


async def _of_tariff(clients: Clients, drafted: d.Document) -> r.TariffPreview:
    said = drafted.tariff
    has_plan = said.HasField("plan")
    zone = plans.read(said.plan).zone if has_plan else "UTC"
    from_ms, to_ms = last_month(datetime.now(ZoneInfo(zone)))
    answer: r.TariffPreview = await clients.reporting(
        "PreviewTariff",
        r.PreviewTariffRequest(
            plan=said.plan if has_plan else None,
            price_micro=None if has_plan else said.price_micro,
            from_ms=from_ms,
            to_ms=to_ms,
            tariff=said.name,
        ),
        timeout_s=PREVIEW_TIMEOUT_S,
    )
    return answer


def last_month(now: datetime) -> tuple[int, int]:
    """Return when the last month of a wall clock began and ended, ms UTC."""
    ends = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    begins = (ends - timedelta(days=1)).replace(day=1)
    first, last = (int(at.astimezone(UTC).timestamp()) * 1000 for at in (begins, ends))
    return first, last


async def _of_policy(clients: Clients, drafted: d.Document) -> p.PolicyPreview:
    said = drafted.policy
    answer: p.PolicyPreview = await clients.previews(
        "PreviewPolicy",
        p.PreviewPolicyRequest(
            policy=said.name,
            alarm_1_minor=said.alarm_1_minor,
            alarm_2_minor=said.alarm_2_minor,
            overdraft_minor=said.overdraft_minor,
            restore_minor=said.restore_minor,
            rules=said.rules if said.HasField("rules") else None,
        ),
        timeout_s=PREVIEW_TIMEOUT_S,
    )
    return answer


def of_tariff(answer: r.TariffPreview) -> RenderableType:
    """Show what last month would have cost, site by site."""
    sites: defaultdict[str, list[r.PreviewedAccount]] = defaultdict(list)
    for account in answer.accounts:
        sites[show.id_of(account.site)].append(account)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("site")
    code = answer.currency
    for name in (
        "accounts",
        "pay more",
        "less",
        f"charged, {code}",
        f"draft, {code}",
        "difference",
    ):
        table.add_column(name, justify="right")
    for site_id, accounts in sorted(sites.items()):
        table.add_row(site_id, *_summed(accounts, code))
    table.add_section()
    table.add_row("[bold]in all[/]", *_summed(answer.accounts, code))
    return Group(table, "what was recorded last month, under the draft; nothing changes")


def _summed(accounts: Iterable[r.PreviewedAccount], code: str) -> list[str]:
    lines = list(accounts)
    differences = [int(line.difference_nano) for line in lines]
    counts = (len(lines), sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    sums = [
        sum(int(getattr(line, f"{name}_nano")) for line in lines)
        for name in ("charged", "draft", "difference")
    ]
    return [*map(str, counts), *(show.money(nano, code).removesuffix(f" {code}") for nano in sums)]


def of_policy(answer: p.PolicyPreview) -> RenderableType:
    """Show who would be in another state at once."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("account", "site", "available", "now", "then", ""):
        table.add_column(name)
    for each in answer.accounts[:SHOWN_MAX]:
        table.add_row(
            show.id_of(each.account),
            show.id_of(each.site),
            show.money(each.available_nano, answer.currency),
            show.level(each.level_now),
            show.level(each.level_then),
            _due(each),
        )
    due = sum(each.due_then and not each.due_now for each in answer.accounts)
    changed = (
        f"{len(answer.accounts)} would be in another state at once, {due} of them due to be cut"
    )
    lines = [f"{answer.accounts_count} accounts are under it; {changed}"]
    if due and answer.also_asked:
        lines.append("nobody is cut before " + ", ".join(ALSO_ASKED[x] for x in answer.also_asked))
    if answer.unknown_count:
        lines.append(f"of {answer.unknown_count} more nobody can say: no balance yet, or frozen")
    if len(answer.accounts) > SHOWN_MAX:
        lines.append(f"the first {SHOWN_MAX} are shown; --json has all")
    return Group(table, *lines)


def _due(each: p.PreviewedState) -> str:
    if each.due_then and each.kept_by:
        return f"nothing left, kept by {each.kept_by}"
    if each.due_then and not each.due_now:
        return "[red]due to be cut[/]"
    return "[green]not due any more[/]" if each.due_now and not each.due_then else ""


# --- adjustment runs ------------------------------------------------------------------------------


def adjust(
    tariff: Annotated[str, typer.Argument(help="id of the tariff")],
    version: Annotated[int, typer.Argument(help="number of the version that began too late")],
    begin: Annotated[
        str, typer.Option("--from", help="when it should have begun, e.g. 2027-01-01T00:00+08:00")
    ],
    site: Annotated[str, typer.Option(help="accounts of this site; default: all")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what it comes to")] = False,
) -> None:
    """Draft the batch that sets right what a version would have charged from an instant on."""
    from_ms = instant_ms(begin)

    async def work(clients: Clients) -> dict[str, Message]:
        began = await _began(clients, names.TARIFF.name(tariff), version)
        preview: p.AdjustmentPreview = await clients.previews(
            "PreviewAdjustment",
            p.PreviewAdjustmentRequest(
                tariff=names.TARIFF.name(tariff),
                version=version,
                from_ms=from_ms,
                site=names.SITE.name_if(site),
            ),
            timeout_s=PREVIEW_TIMEOUT_S,
        )
        what = f"document {show.id_of(began.document)}" if began.document else ""
        what = what or f"tariff {tariff} version {version}"
        reason = f"{what} from {from_ms}" + (f" at {site}" if site else "")
        targets = [
            b.BatchTarget(name=each.account, amount_minor=each.amount_minor)
            for each in preview.accounts
            if each.amount_minor and not each.left_out
        ]
        if dry_run or not targets:
            return {"preview": preview}
        cancelled = 0
        async for known in _adjustments(clients):
            if known.reason == reason and known.status != "cancelled":
                return {"preview": preview, "batch": known}
            cancelled += known.reason == reason
        again = (cancelled,) if cancelled else ()  # another request than what was cancelled
        drafted: b.Batch = await clients.batches(
            "CreateBatch",
            b.CreateBatchRequest(
                request_id=sitefile.request_id("adjust", tariff, version, from_ms, site, *again),
                kind="adjustment",
                reason=reason,
                list=b.BatchTargets(targets=targets),
            ),
            timeout_s=PREVIEW_TIMEOUT_S,
        )
        return {"preview": preview, "batch": drafted}

    run(work, lambda answer: of_run(answer["preview"], answer.get("batch")), in_steps=True)


async def _began(clients: Clients, parent: str, number: int) -> d.Version:
    """Return a version of a tariff that has begun. Raises Refused."""
    request = d.ListVersionsRequest(parent=parent)
    found: d.ListVersionsResponse = await whole(clients.documents, "ListVersions", request)
    for each in found.versions:
        if each.number == number and each.state != "scheduled":
            return each
    message = f"{parent} has no version {number} that has begun: run it when it has"
    raise Refused("FAILED_PRECONDITION", "FAILED_PRECONDITION", message)


async def _adjustments(clients: Clients) -> AsyncIterator[b.Batch]:
    request = b.ListBatchesRequest(filter="kind = adjustment")
    async for page in pages(clients.batches, "ListBatches", request):
        for each in page.batches:
            yield each


def of_run(answer: p.AdjustmentPreview, batch: b.Batch | None) -> RenderableType:
    """Show what an adjustment run comes to, and the batch that carries it out."""
    code, decimals = answer.currency, answer.minor_decimals
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("account")
    for name in (f"charged, {code}", f"would have been, {code}", f"credit, {code}"):
        table.add_column(name, justify="right")
    table.add_column("left out")
    for each in answer.accounts[:SHOWN_MAX]:
        sums = (int(each.charged_nano), int(each.would_nano))
        table.add_row(
            show.id_of(each.account),
            *(show.money(nano, code).removesuffix(f" {code}") for nano in sums),
            format_scaled(each.amount_minor, decimals),
            WHY_LEFT_OUT.get(each.left_out, each.left_out),
        )
    left_out = sum(bool(each.left_out) for each in answer.accounts)
    when = f"from {show.moment(answer.from_ms)} until {show.moment(answer.to_ms)}"
    credit, debit = (
        format_scaled(minor, decimals) for minor in (answer.credit_minor, answer.debit_minor)
    )
    count = len(answer.accounts)
    lines: list[RenderableType] = [
        f"{when}: {count} accounts; credited {credit}, taken back {debit} {code}"
    ]
    if left_out:
        lines.append(f"[yellow]{left_out} are left out: look at each, and adjust it by hand[/]")
    if len(answer.accounts) > SHOWN_MAX:
        lines.append(f"the first {SHOWN_MAX} are shown; --json has all")
    return Group(table, *lines, *([batches.shown(batch)] if batch is not None else []))
