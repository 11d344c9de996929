"""`wattvend sell` and `quote`, and what becomes of a sale: its receipt, its reversal."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.markup import escape

from services.common.kernel import names
from tools.cli import lists, show
from tools.cli.asking import REGISTER, Reason, RequestId, amount_of, run, run_with_amount
from tools.client import Clients
from wattvend.vending.v1 import vending_pb2 as v

receipt_app = typer.Typer(no_args_is_help=True, help="Receipts: list, show, print.")
receipt_app.command("list")(lists.receipt_list)


def _energy_milli(text: str) -> int:
    """Return energy as typed, e.g. 100 or 12.5, in thousandths; leaves with what is wrong."""
    if not REGISTER.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no energy; write e.g. 100 or 12.5")
    return int(Decimal(text) * 1000)


def quote(
    account: Annotated[str, typer.Argument(help="account id")],
    energy: Annotated[str, typer.Argument(help="kWh or m3, e.g. 100")],
) -> None:
    """Say what energy costs an account now."""
    request = v.QuoteSaleRequest(
        name=names.ACCOUNT.name(account), energy_milli=_energy_milli(energy)
    )
    run(lambda clients: clients.vending("QuoteSale", request), show.quoted)


def sell_energy(
    account: Annotated[str, typer.Argument(help="account id")],
    energy: Annotated[str, typer.Argument(help="kWh or m3, e.g. 100")],
    method: Annotated[str, typer.Option(help="cash, pos, transfer, qr")] = "cash",
    at: Annotated[str, typer.Option(help="the amount that the buyer was told")] = "",
    request_id: RequestId = "",
) -> None:
    """Sell what so much energy costs now."""
    request = v.SellRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        method=method,
        energy_milli=_energy_milli(energy),
    )
    run_with_amount("Sell", request, amount_of(at) if at else None, show.receipt)


@receipt_app.command("show")
def receipt_show(receipt: Annotated[str, typer.Argument(help="id of the receipt")]) -> None:
    """Show a receipt with its number."""
    request = v.GetReceiptRequest(name=names.RECEIPT.name(receipt))
    run(lambda clients: clients.vending("GetReceipt", request), show.numbered)


@receipt_app.command("print")
def receipt_print(
    receipt: Annotated[str, typer.Argument(help="id of the receipt")],
    to: Annotated[Path, typer.Option(help="the PDF file to write", dir_okay=False)],
) -> None:
    """Write a receipt as PDF, as often as it is wanted."""

    async def work(clients: Clients) -> v.Receipt:
        printed: v.PrintReceiptResponse = await clients.vending(
            "PrintReceipt", v.PrintReceiptRequest(name=names.RECEIPT.name(receipt))
        )
        to.write_bytes(printed.pdf)
        return v.Receipt(number=printed.number)

    run(work, lambda answer: f"receipt {answer.number} is {escape(str(to))}")


def reverse(
    account: Annotated[str, typer.Argument(help="account id")],
    receipt: Annotated[str, typer.Argument(help="id of the receipt")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Take a sale back, whole: the money goes back as it came."""
    request = v.ReverseSaleRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        receipt=names.RECEIPT.name(receipt),
        reason=reason,
    )
    run(lambda clients: clients.vending("ReverseSale", request), show.reversal, request.request_id)


def sell(
    account: Annotated[str, typer.Argument(help="account id")],
    amount: Annotated[str, typer.Argument(help="e.g. 100 or 99.90")],
    method: Annotated[str, typer.Option(help="cash, pos, transfer, qr")] = "cash",
    request_id: RequestId = "",
) -> None:
    """Sell credit and print the receipt."""
    request = v.SellRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        method=method,
    )
    run_with_amount("Sell", request, amount_of(amount), show.receipt)
