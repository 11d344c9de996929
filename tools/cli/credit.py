"""`wattvend account`: what an account has, owes, is lent and gets back; whether it may be cut."""

from typing import Annotated
from uuid import uuid4

import typer

from services.common.kernel import names
from tools.cli import show
from tools.cli.asking import (
    Answer,
    Reason,
    RequestId,
    account_of,
    amount_of,
    instant_ms,
    run,
    run_with_amount,
)
from tools.client import Clients
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import vending_pb2 as v

notice_app = typer.Typer(no_args_is_help=True, help="Notices: record what became of them.")
Until = Annotated[str, typer.Option(help="this terminal's clock, e.g. '2027-01-31 18:00'")]


def account_show(account: Annotated[str, typer.Argument(help="account id")]) -> None:
    """Show what the book and metering say of an account."""

    async def work(clients: Clients) -> Answer:
        book = await account_of(clients, account)
        balance: r.Balance = await clients.reporting(
            "GetBalance",
            r.GetBalanceRequest(
                name=names.BALANCE.name(account), min_revision=book.version.revision
            ),
        )
        return {"account": book, "balance": balance}

    run(work, lambda answer: show.account(answer["account"], answer["balance"]))


def account_emergency(
    account: Annotated[str, typer.Argument(help="account id")], request_id: RequestId = ""
) -> None:
    """Grant the emergency credit of the account's policy; the next sale recovers it."""
    request = v.GrantEmergencyCreditRequest(
        request_id=request_id or str(uuid4()), name=names.ACCOUNT.name(account)
    )
    run(
        lambda clients: clients.vending("GrantEmergencyCredit", request),
        show.account,
        request.request_id,
    )


def account_debt(
    account: Annotated[str, typer.Argument(help="account id")],
    amount: Annotated[str, typer.Argument(help="owed from now on, e.g. 50.00; 0: nothing")],
    reason: Annotated[str, typer.Option(help="why, for the books")],
    share_ppm: Annotated[int, typer.Option(help="of each sale, e.g. 200000 for 20 %")] = 0,
    request_id: RequestId = "",
) -> None:
    """Set what an account owes, to be recovered as a share of each sale."""
    request = v.SetDebtRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        share_ppm=share_ppm,
        reason=reason,
    )
    run_with_amount("SetDebt", request, amount_of(amount), show.account, "debt_minor")


def account_keep_power(
    account: Annotated[str, typer.Argument(help="account id")],
    reason: Reason,
    until: Until = "",
    end: Annotated[bool, typer.Option("--end", help="arrears may cut again")] = False,
    request_id: RequestId = "",
) -> None:
    """Let arrears cut nobody in an account before an instant, at most 400 days ahead."""
    if bool(until) == end:
        raise typer.BadParameter("give --until, or --end")
    request = v.KeepPowerRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        until_ms=instant_ms(until) if until else None,
        reason=reason,
    )
    run(lambda clients: clients.vending("KeepPower", request), show.account, request.request_id)


def account_promise(
    account: Annotated[str, typer.Argument(help="account id")],
    until: Until,
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Take a promise of payment: no cut before an instant, at most 31 days ahead."""
    request = v.PromisePaymentRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        until_ms=instant_ms(until),
        reason=reason,
    )
    run(
        lambda clients: clients.vending("PromisePayment", request),
        show.account,
        request.request_id,
    )


@notice_app.command("record")
def notice_record(
    account: Annotated[str, typer.Argument(help="account id")],
    notice: Annotated[str, typer.Argument(help="notice id")],
    outcome: Annotated[str, typer.Argument(help="delivered, failed")],
    request_id: RequestId = "",
) -> None:
    """Record what became of a notice: a cut may wait for it."""
    request = v.RecordNoticeRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        notice_id=notice,
        outcome=outcome,
    )
    run(lambda clients: clients.vending("RecordNotice", request), show.account, request.request_id)


def account_refund(
    account: Annotated[str, typer.Argument(help="account id")],
    reason: Reason,
    amount: Annotated[str, typer.Option(help="e.g. 12.50; default: all that is left")] = "",
    method: Annotated[str, typer.Option(help="cash, pos, transfer, qr")] = "cash",
    request_id: RequestId = "",
) -> None:
    """Pay credit out, when metering has said what is left."""
    request = v.RefundCreditRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        method=method,
        reason=reason,
    )
    run_with_amount("RefundCredit", request, amount_of(amount) if amount else None, show.refund)


def account_adjust(
    account: Annotated[str, typer.Argument(help="account id")],
    amount: Annotated[str, typer.Argument(help="credited, e.g. 12.50; after --, -12.50: taken")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Set the credit of an account right; nobody pays."""
    request = v.AdjustCreditRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        reason=reason,
    )
    run_with_amount("AdjustCredit", request, amount_of(amount), show.account)


def account_write_off(
    account: Annotated[str, typer.Argument(help="account id")],
    kind: Annotated[str, typer.Argument(help="emergency, debt, arrears")],
    amount: Annotated[str, typer.Argument(help="e.g. 12.50")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Give up what an account owes."""
    request = v.WriteOffRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        kind=kind,
        reason=reason,
    )
    run_with_amount("WriteOff", request, amount_of(amount), show.account)
