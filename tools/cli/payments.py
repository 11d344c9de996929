"""`wattvend payment`: what outside sellers have reserved, and what became of it."""

from typing import Annotated

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from services.common.kernel import filters, names
from services.common.kernel.units import format_scaled
from tools.cli.asking import run
from tools.cli.lists import Limit, Page
from tools.cli.show import currency_of, id_of, moment
from wattvend.vending.v1 import vending_pb2 as v

ALL = "sellers/-"
COLOURS = {
    "reserved": "cyan",
    "confirmed": "yellow",
    "sold": "green",
    "reversed": "yellow",
    "refused": "red",
}
payment_app = typer.Typer(
    no_args_is_help=True, help="Payments that outside sellers take: reserved, sold, let go."
)


@payment_app.command("list")
def payment_list(
    seller: Annotated[str, typer.Option(help="as it names itself; default: all")] = "",
    account: Annotated[str, typer.Option(help="default: all")] = "",
    status: Annotated[
        str,
        typer.Option(
            help="reserved, confirmed, sold, reversed, refused, cancelled, timed-out; default: all"
        ),
    ] = "",
    page: Page = "",
    limit: Limit = 100,
) -> None:
    """List payments of outside sellers, the newest first."""
    request = v.ListPaymentsRequest(
        parent=names.SELLER.name(seller) if seller else ALL,
        filter=filters.wanting(account=names.ACCOUNT.name_if(account), status=status),
        page_token=page,
        page_size=limit,
    )
    run(lambda clients: clients.vending("ListPayments", request), payments)


def payments(answer: v.ListPaymentsResponse) -> RenderableType:
    """Show a page of payments."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("seller", "transaction", "account"):
        table.add_column(name, overflow="fold")
    table.add_column("amount", justify="right", no_wrap=True)
    table.add_column("by")
    table.add_column("status", no_wrap=True)
    table.add_column("reserved")
    for each in answer.payments:
        seller, transaction_id = names.PAYMENT.ids("name", each.name)
        table.add_row(
            escape(seller),
            escape(transaction_id),
            escape(id_of(each.account)),
            _amount(each),
            each.method,
            f"[{COLOURS.get(each.status, 'dim')}]{each.status}[/]{_besides(each)}",
            moment(each.reserved_at_ms),
        )
    more = f"more: --page {answer.next_page_token}" if answer.next_page_token else ""
    return Group(table, more or f"{len(answer.payments)} payments")


def _amount(payment: v.Payment) -> str:
    decimals = currency_of(payment.currency).minor_decimals
    return f"{format_scaled(payment.amount_minor, decimals)} {payment.currency}"


def _besides(payment: v.Payment) -> str:
    """Return what a status alone does not say."""
    if payment.status == "reserved":
        return f"\nuntil {moment(payment.expires_at_ms)}"
    if payment.status == "refused":
        return f"\n{payment.refusal_reason}:\nto be paid back"
    return ""
