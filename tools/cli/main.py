"""`wattvend`: the operator's command line. It speaks only gRPC, to vending and reporting."""

import getpass
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.markup import escape
from typer.core import TyperGroup

from services.common.kernel import filters, names
from services.common.kernel.units import CURRENCIES
from tools import sitefile
from tools.cli import explained, lists, show
from tools.cli.accounts import account_app
from tools.cli.asking import (
    DEFAULT_REPORTING,
    DEFAULT_VENDING,
    REGISTER,
    Answer,
    Reason,
    RequestId,
    instant_ms,
    options,
    out,
)
from tools.cli.asking import account_of as _account
from tools.cli.asking import amount_of as _amount
from tools.cli.asking import minor_of as _minor
from tools.cli.asking import register_milli as _register_milli
from tools.cli.asking import run as _run
from tools.cli.batches import batch_app
from tools.cli.closings import closing_app
from tools.cli.documents import document_app
from tools.cli.openings import opening_app
from tools.cli.publishing import policy_app, tariff_app
from tools.cli.readings import batch_export_readings
from tools.client import Clients
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import accounts_pb2 as a
from wattvend.vending.v1 import vending_pb2 as v


class CutoffByDefault(TyperGroup):
    """`explain ACCOUNT` is `explain cutoff ACCOUNT`: what is asked most, in a hurry."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` name."""
        named = args[0] in self.commands
        return super().resolve_command(ctx, args if named else ["cutoff", *args])


app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
meter_app = typer.Typer(
    no_args_is_help=True,
    help="Meters: assign, move, release, replace; orders about relay and readings.",
)
notice_app = typer.Typer(no_args_is_help=True, help="Notices: record what became of them.")
approval_app = typer.Typer(
    no_args_is_help=True, help="What waits for a second person: list, approve, decline."
)
receipt_app = typer.Typer(no_args_is_help=True, help="Receipts: list, show, print.")
authority_app = typer.Typer(
    no_args_is_help=True, help="What one person may do alone: publish, show."
)
site_app = typer.Typer(no_args_is_help=True, help="Sites: set up from a file, hold all cuts.")
explain_app = typer.Typer(
    cls=CutoffByDefault,
    no_args_is_help=True,
    help="Explain a cut-off (explain ACCOUNT), a charge, a balance.",
)
app.add_typer(account_app, name="account")
app.add_typer(opening_app, name="opening")
batch_app.command("export-readings")(batch_export_readings)
account_app.command("list")(lists.account_list)
receipt_app.command("list")(lists.receipt_list)
site_app.command("list")(lists.site_list)
tariff_app.command("list")(lists.tariff_list)
policy_app.command("list")(lists.policy_list)
app.add_typer(batch_app, name="batch")
app.add_typer(closing_app, name="closing")
app.add_typer(meter_app, name="meter")
app.add_typer(notice_app, name="notice")
app.add_typer(tariff_app, name="tariff")
app.add_typer(policy_app, name="policy")
app.add_typer(document_app, name="document")
app.add_typer(approval_app, name="approval")
app.add_typer(authority_app, name="authority")
app.add_typer(receipt_app, name="receipt")
app.add_typer(site_app, name="site")
app.add_typer(explain_app, name="explain")


ApprovalId = Annotated[str, typer.Argument(help="id of the proposal")]
MeterId = Annotated[str, typer.Argument(help="meter id")]
Until = Annotated[str, typer.Option(help="this terminal's clock, e.g. '2027-01-31 18:00'")]
Register = Annotated[str, typer.Option(help="as the display shows it; default: the last charged")]


@app.callback()
def common(
    *,
    vending: Annotated[
        str, typer.Option(envvar="WATTVEND_VENDING_ADDR", help="vending, host:port")
    ] = DEFAULT_VENDING,
    reporting: Annotated[
        str, typer.Option(envvar="WATTVEND_REPORTING_ADDR", help="reporting, host:port")
    ] = DEFAULT_REPORTING,
    caller: Annotated[
        str, typer.Option(envvar="WATTVEND_CALLER", help="who asks; default: cli:<user>")
    ] = "",
    actor: Annotated[
        str,
        typer.Option(
            envvar="WATTVEND_ACTOR",
            help="the person behind the caller: an opaque id, kept in the book; never a name",
        ),
    ] = "",
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="WATTVEND_CA",
            help="PEM file of the services' certificate authority; set: TLS",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Read the options before the command."""
    name = re.sub(r"[^A-Za-z0-9._@-]", "-", getpass.getuser())
    options.vending, options.reporting = vending, reporting
    options.caller, options.actor = caller or f"cli:{name}", actor
    options.as_json = as_json
    options.authority = None if ca is None else ca.read_bytes()


def _energy_milli(text: str) -> int:
    """Return energy as typed, e.g. 100 or 12.5, in thousandths; leaves with what is wrong."""
    if not REGISTER.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no energy; write e.g. 100 or 12.5")
    return int(Decimal(text) * 1000)


@account_app.command("show")
def account_show(account: Annotated[str, typer.Argument(help="account id")]) -> None:
    """Show what the book and metering say of an account."""

    async def work(clients: Clients) -> Answer:
        book = await _account(clients, account)
        balance: r.Balance = await clients.reporting(
            "GetBalance",
            r.GetBalanceRequest(
                name=names.BALANCE.name(account), min_revision=book.version.revision
            ),
        )
        return {"account": book, "balance": balance}

    _run(work, lambda answer: show.account(answer["account"], answer["balance"]))


@account_app.command("emergency")
def account_emergency(
    account: Annotated[str, typer.Argument(help="account id")], request_id: RequestId = ""
) -> None:
    """Grant the emergency credit of the account's policy; the next sale recovers it."""
    request = v.GrantEmergencyCreditRequest(
        request_id=request_id or str(uuid4()), name=names.ACCOUNT.name(account)
    )
    _run(
        lambda clients: clients.vending("GrantEmergencyCredit", request),
        show.account,
        request.request_id,
    )


@account_app.command("debt")
def account_debt(
    account: Annotated[str, typer.Argument(help="account id")],
    amount: Annotated[str, typer.Argument(help="owed from now on, e.g. 50.00; 0: nothing")],
    reason: Annotated[str, typer.Option(help="why, for the books")],
    share_ppm: Annotated[int, typer.Option(help="of each sale, e.g. 200000 for 20 %")] = 0,
    request_id: RequestId = "",
) -> None:
    """Set what an account owes, to be recovered as a share of each sale."""
    request, owed = request_id or str(uuid4()), _amount(amount)

    async def work(clients: Clients) -> v.Account:
        known = await _account(clients, account)
        answer: v.Account = await clients.vending(
            "SetDebt",
            v.SetDebtRequest(
                request_id=request,
                name=names.ACCOUNT.name(account),
                debt_minor=_minor(owed, known.minor_decimals),
                share_ppm=share_ppm,
                reason=reason,
            ),
        )
        return answer

    _run(work, show.account, request)


@account_app.command("keep-power")
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
    _run(lambda clients: clients.vending("KeepPower", request), show.account, request.request_id)


@account_app.command("promise")
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
    _run(
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
    _run(lambda clients: clients.vending("RecordNotice", request), show.account, request.request_id)


@app.command()
def quote(
    account: Annotated[str, typer.Argument(help="account id")],
    energy: Annotated[str, typer.Argument(help="kWh or m3, e.g. 100")],
) -> None:
    """Say what energy costs an account now."""
    request = v.QuoteSaleRequest(
        name=names.ACCOUNT.name(account), energy_milli=_energy_milli(energy)
    )
    _run(lambda clients: clients.vending("QuoteSale", request), show.quoted)


@app.command("sell-energy")
def sell_energy(
    account: Annotated[str, typer.Argument(help="account id")],
    energy: Annotated[str, typer.Argument(help="kWh or m3, e.g. 100")],
    method: Annotated[str, typer.Option(help="cash, pos, transfer, qr")] = "cash",
    at: Annotated[str, typer.Option(help="the amount that the buyer was told")] = "",
    request_id: RequestId = "",
) -> None:
    """Sell what so much energy costs now."""
    request, told = request_id or str(uuid4()), _amount(at) if at else None

    async def work(clients: Clients) -> v.SellResponse:
        known = await _account(clients, account)
        sold: v.SellResponse = await clients.vending(
            "Sell",
            v.SellRequest(
                request_id=request,
                name=names.ACCOUNT.name(account),
                amount_minor=0 if told is None else _minor(told, known.minor_decimals),
                method=method,
                energy_milli=_energy_milli(energy),
            ),
        )
        return sold

    _run(work, show.receipt, request)


@receipt_app.command("show")
def receipt_show(receipt: Annotated[str, typer.Argument(help="id of the receipt")]) -> None:
    """Show a receipt with its number."""
    request = v.GetReceiptRequest(name=names.RECEIPT.name(receipt))
    _run(lambda clients: clients.vending("GetReceipt", request), show.numbered)


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

    _run(work, lambda answer: f"receipt {answer.number} is {escape(str(to))}")


@app.command()
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
    _run(lambda clients: clients.vending("ReverseSale", request), show.reversal, request.request_id)


@account_app.command("refund")
def account_refund(
    account: Annotated[str, typer.Argument(help="account id")],
    reason: Reason,
    amount: Annotated[str, typer.Option(help="e.g. 12.50; default: all that is left")] = "",
    method: Annotated[str, typer.Option(help="cash, pos, transfer, qr")] = "cash",
    request_id: RequestId = "",
) -> None:
    """Pay credit out, when metering has said what is left."""
    request, wanted = request_id or str(uuid4()), _amount(amount) if amount else None

    async def work(clients: Clients) -> v.RefundCreditResponse:
        known = await _account(clients, account)
        answer: v.RefundCreditResponse = await clients.vending(
            "RefundCredit",
            v.RefundCreditRequest(
                request_id=request,
                name=names.ACCOUNT.name(account),
                amount_minor=0 if wanted is None else _minor(wanted, known.minor_decimals),
                method=method,
                reason=reason,
            ),
        )
        return answer

    _run(work, show.refund, request)


@account_app.command("adjust")
def account_adjust(
    account: Annotated[str, typer.Argument(help="account id")],
    amount: Annotated[str, typer.Argument(help="credited, e.g. 12.50; after --, -12.50: taken")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Set the credit of an account right; nobody pays."""
    request, more = request_id or str(uuid4()), _amount(amount)

    async def work(clients: Clients) -> v.Account:
        known = await _account(clients, account)
        answer: v.Account = await clients.vending(
            "AdjustCredit",
            v.AdjustCreditRequest(
                request_id=request,
                name=names.ACCOUNT.name(account),
                amount_minor=_minor(more, known.minor_decimals),
                reason=reason,
            ),
        )
        return answer

    _run(work, show.account, request)


@account_app.command("write-off")
def account_write_off(
    account: Annotated[str, typer.Argument(help="account id")],
    kind: Annotated[str, typer.Argument(help="emergency, debt, arrears")],
    amount: Annotated[str, typer.Argument(help="e.g. 12.50")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Give up what an account owes."""
    request, owed = request_id or str(uuid4()), _amount(amount)

    async def work(clients: Clients) -> v.Account:
        known = await _account(clients, account)
        answer: v.Account = await clients.vending(
            "WriteOff",
            v.WriteOffRequest(
                request_id=request,
                name=names.ACCOUNT.name(account),
                kind=kind,
                amount_minor=_minor(owed, known.minor_decimals),
                reason=reason,
            ),
        )
        return answer

    _run(work, show.account, request)


def _rule(text: str, currency: str) -> tuple[str, int | None]:
    """Return what one person may do, as typed: ACTION, or ACTION=UP_TO: money, or a count."""
    action, is_limited, limit = text.partition("=")
    if not is_limited:
        return action, None
    if action in show.COUNTED:
        return action, int(_amount(limit))
    known = CURRENCIES.get(currency)
    if known is None:
        raise typer.BadParameter(f"{currency!r} is no currency")
    return action, _minor(_amount(limit), known.minor_decimals)


@authority_app.command("publish")
def authority_publish(
    legal_entity: Annotated[str, typer.Argument(help="legal entity, as its sites name it")],
    currency: Annotated[str, typer.Option(help="of the amounts")],
    alone: Annotated[
        list[str], typer.Option(help="what one person may do: ACTION, or ACTION=UP_TO")
    ] = [],  # noqa: B006
    wait_hours: Annotated[int, typer.Option(help="how long a proposal waits; 0: three days")] = 0,
    request_id: RequestId = "",
) -> None:
    """Say what one person may do alone; everything else needs a second one."""
    request = v.PublishAuthorityRequest(
        request_id=request_id or str(uuid4()),
        name=names.AUTHORITY.name(legal_entity),
        currency=currency,
        rules=json.dumps(dict(_rule(text, currency) for text in alone)),
        proposals_last_ms=wait_hours * 3_600_000,
    )
    _run(
        lambda clients: clients.vending("PublishAuthority", request),
        show.authority,
        request.request_id,
    )


@authority_app.command("show")
def authority_show(
    legal_entity: Annotated[str, typer.Argument(help="legal entity, as its sites name it")],
) -> None:
    """Show what one person may do alone."""
    request = v.GetAuthorityRequest(name=names.AUTHORITY.name(legal_entity))
    _run(lambda clients: clients.vending("GetAuthority", request), show.authority)


@approval_app.command("list")
def approval_list(
    legal_entity: Annotated[str, typer.Option(help="default: all")] = "",
    page: Annotated[str, typer.Option(help="token of the page, as the one before told it")] = "",
) -> None:
    """List what waits for a second person, the oldest first."""
    of = filters.wanting(legal_entity=names.LEGAL_ENTITY.name_if(legal_entity))
    request = v.ListApprovalsRequest(filter=of, page_token=page)
    _run(lambda clients: clients.vending("ListApprovals", request), show.approvals)


@approval_app.command("show")
def approval_show(approval: ApprovalId) -> None:
    """Show what was proposed, and what became of it."""
    request = v.GetApprovalRequest(name=names.APPROVAL.name(approval))
    _run(lambda clients: clients.vending("GetApproval", request), show.approval)


@approval_app.command("approve")
def approval_approve(approval: ApprovalId, reason: Reason, request_id: RequestId = "") -> None:
    """Let it happen: what was proposed is carried out at once."""
    request = v.ApproveRequest(
        request_id=request_id or str(uuid4()), name=names.APPROVAL.name(approval), reason=reason
    )
    _run(lambda clients: clients.vending("Approve", request), show.approval, request.request_id)


@approval_app.command("decline")
def approval_decline(approval: ApprovalId, reason: Reason, request_id: RequestId = "") -> None:
    """Let it not happen."""
    request = v.DeclineRequest(
        request_id=request_id or str(uuid4()), name=names.APPROVAL.name(approval), reason=reason
    )
    _run(lambda clients: clients.vending("Decline", request), show.approval, request.request_id)


@app.command()
def sell(
    account: Annotated[str, typer.Argument(help="account id")],
    amount: Annotated[str, typer.Argument(help="e.g. 100 or 99.90")],
    method: Annotated[str, typer.Option(help="cash, pos, transfer, qr")] = "cash",
    request_id: RequestId = "",
) -> None:
    """Sell credit and print the receipt."""
    request, paid = request_id or str(uuid4()), _amount(amount)

    async def work(clients: Clients) -> v.SellResponse:
        known = await _account(clients, account)
        sold: v.SellResponse = await clients.vending(
            "Sell",
            v.SellRequest(
                request_id=request,
                name=names.ACCOUNT.name(account),
                amount_minor=_minor(paid, known.minor_decimals),
                method=method,
            ),
        )
        return sold

    _run(work, show.receipt, request)


@explain_app.command("cutoff")
def explain_cutoff(
    account: Annotated[str, typer.Argument(help="account id")],
    decision: Annotated[str, typer.Option(help="alarm id; default: the newest cut-off")] = "",
) -> None:
    """Explain a cut-off: readings, charge, tariff, threshold, policy, intent, read-back."""
    request = r.ExplainCutoffRequest(
        account=names.ACCOUNT.name(account), alarm=names.ALARM.name_if(decision)
    )
    _run(lambda clients: clients.reporting("ExplainCutoff", request), explained.cutoff)


@explain_app.command("charge")
def explain_charge(
    meter: Annotated[str, typer.Argument(help="meter id")],
    epoch: Annotated[int, typer.Option(min=0, help="with --sequence; default: the newest")] = 0,
    sequence: Annotated[int, typer.Option(min=0, help="with --epoch; default: the newest")] = 0,
) -> None:
    """Explain a charge: readings, ratio, every version of its tariff, every line, the totals."""
    request = r.ExplainChargeRequest(meter=names.METER.name(meter), epoch=epoch, sequence=sequence)
    _run(lambda clients: clients.reporting("ExplainCharge", request), explained.charge)


@explain_app.command("fees")
def explain_fees(
    account: Annotated[str, typer.Argument(help="account id")],
    sequence: Annotated[int, typer.Option(min=0, help="of postings; default: the newest")] = 0,
) -> None:
    """Explain a posting of an account's fees: every day or month, every version of its tariff."""
    request = r.ExplainChargeRequest(account=names.ACCOUNT.name(account), sequence=sequence)
    _run(lambda clients: clients.reporting("ExplainCharge", request), explained.charge)


@explain_app.command("balance")
def explain_balance(
    account: Annotated[str, typer.Argument(help="account id")],
    sequence: Annotated[
        int | None, typer.Option(min=0, help="as of this change of totals; default: now")
    ] = None,
) -> None:
    """Explain a balance: every credit, and every charge by its sequences."""
    request = r.ExplainBalanceRequest(
        account=names.ACCOUNT.name(account), account_sequence=sequence
    )
    _run(lambda clients: clients.reporting("ExplainBalance", request), explained.balance)


def _of(site: str, account: str = "", meter: str = "") -> str:
    """Return the filter of what is of a site, an account, a meter; "": of any."""
    return filters.wanting(
        site=names.SITE.name_if(site),
        account=names.ACCOUNT.name_if(account),
        meter=names.METER.name_if(meter),
    )


@app.command()
def alarms(
    site: Annotated[str, typer.Option(help="only of this site")] = "",
    account: Annotated[str, typer.Option(help="only of this account")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="how many, newest first")] = 50,
) -> None:
    """List alarms and decisions, newest first."""
    request = r.ListAlarmsRequest(filter=_of(site, account), page_size=limit)
    _run(lambda clients: clients.reporting("ListAlarms", request), show.alarms)


@app.command()
def exceptions(
    site: Annotated[str, typer.Option(help="only of this site")] = "",
    account: Annotated[str, typer.Option(help="only of this account")] = "",
    meter: Annotated[str, typer.Option(help="only of this meter")] = "",
    ended: Annotated[bool, typer.Option("--ended", help="also those that ended")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="how many, newest first")] = 50,
) -> None:
    """List what a person has to look at: held readings, flags, cuts that did not follow."""
    request = r.ListExceptionsRequest(
        filter=_of(site, account, meter), ended=ended, page_size=limit
    )
    _run(lambda clients: clients.reporting("ListExceptions", request), show.exceptions)


@app.command()
def fleet(
    site: Annotated[str, typer.Option(help="only of this site")] = "",
    lost: Annotated[bool, typer.Option("--lost", help="only what is offline or unknown")] = False,
) -> None:
    """Show every meter: online or not, register, relay wanted and reported."""

    async def all_meters(clients: Clients) -> r.ListMetersResponse:
        found = r.ListMetersResponse()
        token = ""
        while True:
            page: r.ListMetersResponse = await clients.reporting(
                "ListMeters",
                r.ListMetersRequest(filter=_of(site), page_size=1000, page_token=token),
            )
            found.meters.extend(page.meters)
            if not (token := page.next_page_token):
                return found

    if lost:
        request = r.ListLostMetersRequest(filter=_of(site), page_size=1000)
        _run(lambda clients: clients.reporting("ListLostMeters", request), show.lost)
    else:
        _run(all_meters, show.meters)


@meter_app.command("assign")
def meter_assign(
    meter: MeterId,
    account: Annotated[str, typer.Argument(help="account id")],
    register: Register = "",
    request_id: RequestId = "",
) -> None:
    """Give a meter to an account, at a register."""
    request = v.AssignMeterRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        account=names.ACCOUNT.name(account),
        register_milli=_register_milli(register) if register else None,
    )
    _run(lambda clients: clients.vending("AssignMeter", request), show.meter, request.request_id)


@meter_app.command("release")
def meter_release(meter: MeterId, register: Register = "", request_id: RequestId = "") -> None:
    """Take a meter from its account; the house owns what it uses from there on."""
    request = v.ReleaseMeterRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        register_milli=_register_milli(register) if register else None,
    )
    _run(lambda clients: clients.vending("ReleaseMeter", request), show.meter, request.request_id)


@meter_app.command("move")
def meter_move(
    meter: MeterId,
    from_account: Annotated[str, typer.Argument(help="id of the account that has it")],
    to_account: Annotated[str, typer.Argument(help="id of the account that gets it")],
    register: Register = "",
    request_id: RequestId = "",
) -> None:
    """Give a meter of an account to another one, at one register."""
    request = a.MoveMeterRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        from_account=names.ACCOUNT.name(from_account),
        to_account=names.ACCOUNT.name(to_account),
        register_milli=_register_milli(register) if register else None,
    )
    _run(lambda clients: clients.accounts("MoveMeter", request), show.meter, request.request_id)


@meter_app.command("show")
def meter_show(meter: MeterId) -> None:
    """Show what the book says of a meter."""
    request = v.GetMeterRequest(name=names.METER.name(meter))
    _run(lambda clients: clients.vending("GetMeter", request), show.meter)


@meter_app.command("replace")
def meter_replace(  # noqa: PLR0917 - a command line is parsed by name
    meter: MeterId,
    closing: Annotated[str, typer.Option(help="last register of before, e.g. 1234.56")],
    reason: Reason,
    opening: Annotated[str, typer.Option(help="first register of now")] = "0",
    serial: Annotated[str, typer.Option(help="of the new device; default: as it was")] = "",
    unit: Annotated[int, typer.Option(help="bus address; default: as it was")] = 0,
    profile: Annotated[str, typer.Option(help="of the new device; default: as it was")] = "",
    ratio: Annotated[int, typer.Option(help="CT x PT; default: as it was")] = 0,
    max_power_w: Annotated[int, typer.Option(help="behind the meter; default: as it was")] = 0,
    request_id: RequestId = "",
) -> None:
    """Let another device, or a register that began anew, count on for the same account."""
    request = v.ReplaceMeterRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        closing_register_milli=_register_milli(closing),
        opening_register_milli=_register_milli(opening),
        reason=reason,
        serial=serial or None,
        unit=unit or None,
        profile=profile or None,
        ratio=ratio or None,
        max_power_w=max_power_w or None,
    )
    _run(lambda clients: clients.vending("ReplaceMeter", request), show.meter, request.request_id)


@meter_app.command("ratio")
def meter_ratio(
    meter: MeterId,
    ratio: Annotated[int, typer.Argument(help="CT x PT")],
    reason: Reason,
    register: Register = "",
    request_id: RequestId = "",
) -> None:
    """Give a meter another ratio, from a register on."""
    request = v.ChangeRatioRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        ratio=ratio,
        register_milli=_register_milli(register) if register else None,
        reason=reason,
    )
    _run(lambda clients: clients.vending("ChangeRatio", request), show.meter, request.request_id)


@meter_app.command("resolve")
def meter_resolve(
    meter: MeterId,
    reading: Annotated[str, typer.Argument(help="id of the held reading, as its alarm tells it")],
    resolution: Annotated[str, typer.Argument(help="accept: it is true; reject: it is not")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Say what a held reading is."""
    request = v.ResolveReadingRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        reading_id=reading,
        resolution=resolution,
        reason=reason,
    )
    _run(lambda clients: clients.vending("ResolveReading", request), show.meter, request.request_id)


@meter_app.command("force")
def meter_force(
    meter: MeterId,
    position: Annotated[str, typer.Argument(help="off, on; prepaid: as the balance says")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Force a relay off or on whatever the balance, or let the balance decide again."""
    request = v.ForceRelayRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        position=position,
        reason=reason,
    )
    _run(lambda clients: clients.vending("ForceRelay", request), show.meter, request.request_id)


@site_app.command("apply")
def site_apply(
    file: Annotated[Path, typer.Argument(help="YAML file of a site", exists=True, dir_okay=False)],
) -> None:
    """Register what a file describes; applying it again changes nothing."""
    try:
        described = sitefile.read(file)
    except sitefile.SiteFileError as wrong:
        raise typer.BadParameter(str(wrong)) from None

    def said(text: str) -> None:
        if not options.as_json:
            out.print(f"[green]✓[/] {text}")

    async def work(clients: Clients) -> v.Site:
        await sitefile.apply(clients, described, said)
        return v.Site(name=names.SITE.name(described.site.id))

    _run(work, lambda site: f"site {show.id_of(site.name)} stands")


@site_app.command("place")
def site_place(
    site: Annotated[str, typer.Argument(help="site id")],
    reason: Annotated[str, typer.Option(help="why; kept in the book")],
    under: Annotated[str, typer.Option(help="site that it lies within")] = "",
    top: Annotated[bool, typer.Option("--top", help="it lies within no other")] = False,
    request_id: RequestId = "",
) -> None:
    """Let a site lie within another, as a floor does in a building: filters know the tree."""
    if bool(under) == top:
        raise typer.BadParameter("give --under, or --top")
    request = v.PlaceSiteRequest(
        request_id=request_id or str(uuid4()),
        name=f"sites/{site}",
        parent=f"sites/{under}" if under else "",
        reason=reason,
    )
    _run(lambda clients: clients.vending("PlaceSite", request), show.site, request.request_id)


@site_app.command("show")
def site_show(site: Annotated[str, typer.Argument(help="site id")]) -> None:
    """Show what the book says of a site."""
    request = v.GetSiteRequest(name=names.SITE.name(site))
    _run(lambda clients: clients.vending("GetSite", request), show.site)


@site_app.command("hold-cuts")
def site_hold(
    site: Annotated[str, typer.Argument(help="site id")],
    reason: Annotated[str, typer.Option(help="why; kept in the book")],
    request_id: RequestId = "",
) -> None:
    """Hold every cut at a site until released. Restores go on."""
    request = v.HoldCutsRequest(
        request_id=request_id or str(uuid4()), name=names.SITE.name(site), reason=reason
    )
    _run(lambda clients: clients.vending("HoldCuts", request), show.site, request.request_id)


@site_app.command("release-cuts")
def site_release(
    site: Annotated[str, typer.Argument(help="site id")],
    reason: Annotated[str, typer.Option(help="why; kept in the book")],
    request_id: RequestId = "",
) -> None:
    """Let cuts be sent again."""
    request = v.ReleaseCutsRequest(
        request_id=request_id or str(uuid4()), name=names.SITE.name(site), reason=reason
    )
    _run(lambda clients: clients.vending("ReleaseCuts", request), show.site, request.request_id)


def main() -> None:
    """Entry point of the `wattvend` command."""
    app(prog_name="wattvend")
