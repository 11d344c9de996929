"""What there is, page by page: accounts, sites, tariffs, policies, and an account's receipts."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from services.common.kernel import names
from services.common.kernel.units import format_scaled
from tools.cli.asking import run
from tools.cli.show import currency_of, id_of, moment, money, page, price
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import vending_pb2 as v

AT_MS = {"sale": "sold_at_ms", "reversal": "reversed_at_ms", "refund": "refunded_at_ms"}

Filter = Annotated[str, typer.Option("--filter", help="as docs/filters.md says; default: all")]
Page = Annotated[str, typer.Option(help="token of the page, as the one before told it")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="how many")]


def account_list(filter_: Filter = "", page: Page = "", limit: Limit = 100) -> None:
    """List accounts in order of their ids, e.g. --filter 'site = sites/mall level = cut'."""
    request = r.ListAccountsRequest(filter=filter_, page_token=page, page_size=limit)
    run(lambda clients: clients.reporting("ListAccounts", request), accounts)


def site_list(filter_: Filter = "", page: Page = "", limit: Limit = 100) -> None:
    """List sites in order of their ids, e.g. --filter 'cuts_held = true'."""
    request = r.ListSitesRequest(filter=filter_, page_token=page, page_size=limit)
    run(lambda clients: clients.reporting("ListSites", request), sites)


def tariff_list(filter_: Filter = "", page: Page = "", limit: Limit = 100) -> None:
    """List the newest version of each tariff, e.g. --filter 'commodity = water'."""
    request = r.ListTariffsRequest(filter=filter_, page_token=page, page_size=limit)
    run(lambda clients: clients.reporting("ListTariffs", request), tariffs)


def policy_list(filter_: Filter = "", page: Page = "", limit: Limit = 100) -> None:
    """List the newest version of each policy, e.g. --filter 'currency = CNY'."""
    request = r.ListPoliciesRequest(filter=filter_, page_token=page, page_size=limit)
    run(lambda clients: clients.reporting("ListPolicies", request), policies)


def receipt_list(
    account: Annotated[str, typer.Argument(help="account id")],
    filter_: Filter = "",
    page: Page = "",
    limit: Limit = 100,
) -> None:
    """List what receipts an account was given, newest first, e.g. --filter 'type = refund'."""
    request = v.ListReceiptsRequest(
        parent=names.ACCOUNT.name(account), filter=filter_, page_token=page, page_size=limit
    )
    run(lambda clients: clients.vending("ListReceipts", request), receipts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], answer: Any) -> RenderableType:
    """Return rows as a table, and where the next page begins."""
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return page(table, answer)


def accounts(answer: r.ListAccountsResponse) -> RenderableType:
    """Show accounts and their balances."""
    rows = [
        (
            escape(id_of(each.account)),
            each.status,
            escape(id_of(each.site)),
            f"{id_of(each.tariff)}, {id_of(each.policy)}",
            money(each.available_nano, each.currency) if each.HasField("available_nano") else "-",
            f"{each.level or '-'}{' [magenta]frozen[/]' if each.frozen else ''}",
        )
        for each in answer.accounts
    ]
    columns = ("account", "status", "site", "tariff, policy", "available", "level")
    return _table(columns, rows, answer)


def sites(answer: r.ListSitesResponse) -> RenderableType:
    """Show sites and whether their cuts are held."""
    rows = [
        (
            id_of(each.site),
            escape(each.display_name),
            escape(id_of(each.legal_entity)),
            f"{each.zone}, {each.currency}",
            "[red]held[/]" if each.cuts_held else f"at most {each.cuts_per_minute} a minute",
        )
        for each in answer.sites
    ]
    return _table(("site", "name", "legal entity", "zone, currency", "cuts"), rows, answer)


def tariffs(answer: r.ListTariffsResponse) -> RenderableType:
    """Show the newest version of each tariff."""
    rows = [
        (
            id_of(each.tariff),
            str(each.version),
            f"{each.commodity}, {escape(id_of(each.legal_entity))}",
            moment(each.effective_at_ms) if each.effective_at_ms else "at once",
            "a plan"
            if each.HasField("plan")
            else price(each.price_micro, each.currency, each.commodity),
        )
        for each in answer.tariffs
    ]
    return _table(("tariff", "version", "sells", "in force from", "charges"), rows, answer)


def policies(answer: r.ListPoliciesResponse) -> RenderableType:
    """Show the newest version of each policy."""
    rows = [
        (
            id_of(each.policy),
            str(each.version),
            f"{money(each.alarm_1_nano, each.currency)}, {money(each.alarm_2_nano, each.currency)}",
            money(-each.overdraft_nano, each.currency),
            money(each.restore_nano, each.currency),
        )
        for each in answer.policies
    ]
    return _table(("policy", "version", "warns at", "cuts at", "restores from"), rows, answer)


def receipts(answer: v.ListReceiptsResponse) -> RenderableType:
    """Show receipts: a sale comes in, a reversal or a refund goes out."""
    rows = []
    for each in answer.receipts:
        kind = each.WhichOneof("document") or ""
        told = getattr(each, kind)
        amount = format_scaled(told.amount_minor, currency_of(told.currency).minor_decimals)
        out = "" if kind == "sale" else "-"
        rows.append(
            (
                moment(getattr(told, AT_MS[kind])),
                str(each.number or "-"),
                kind,
                f"{out}{amount} {told.currency} ({told.method})",
                str(each.other_number or "-"),
                id_of(each.name),
            )
        )
    return _table(("at", "number", "type", "amount", "other number", "id"), rows, answer)
