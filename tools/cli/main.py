"""`wattvend`: the operator's command line. It speaks only gRPC, to vending and reporting."""

import getpass
import re
from pathlib import Path
from typing import Annotated

import typer

from tools.cli import credit, lists, selling, watching
from tools.cli.accounts import account_app
from tools.cli.approvals import approval_app, authority_app
from tools.cli.asking import DEFAULT_REPORTING, DEFAULT_VENDING, options
from tools.cli.batches import batch_app
from tools.cli.closings import closing_app
from tools.cli.credit import notice_app
from tools.cli.documents import document_app
from tools.cli.explaining import explain_app
from tools.cli.exports import batch_download, batch_show, batch_verify
from tools.cli.meters import meter_app
from tools.cli.openings import opening_app
from tools.cli.operations import operation_app
from tools.cli.payments import payment_app
from tools.cli.publishing import policy_app, tariff_app
from tools.cli.selling import receipt_app
from tools.cli.sites import site_app

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
app.add_typer(account_app, name="account")
app.add_typer(opening_app, name="opening")
app.add_typer(batch_app, name="batch")
app.add_typer(closing_app, name="closing")
app.add_typer(operation_app, name="operation")
app.add_typer(meter_app, name="meter")
app.add_typer(notice_app, name="notice")
app.add_typer(tariff_app, name="tariff")
app.add_typer(policy_app, name="policy")
app.add_typer(document_app, name="document")
app.add_typer(approval_app, name="approval")
app.add_typer(authority_app, name="authority")
app.add_typer(receipt_app, name="receipt")
app.add_typer(payment_app, name="payment")
app.add_typer(site_app, name="site")
app.add_typer(explain_app, name="explain")
account_app.command("list")(lists.account_list)
account_app.command("show")(credit.account_show)
account_app.command("emergency")(credit.account_emergency)
account_app.command("debt")(credit.account_debt)
account_app.command("keep-power")(credit.account_keep_power)
account_app.command("promise")(credit.account_promise)
account_app.command("refund")(credit.account_refund)
account_app.command("adjust")(credit.account_adjust)
account_app.command("write-off")(credit.account_write_off)
tariff_app.command("list")(lists.tariff_list)
policy_app.command("list")(lists.policy_list)
batch_app.command("show")(batch_show)
batch_app.command("download")(batch_download)
batch_app.command("verify")(batch_verify)
app.command("quote")(selling.quote)
app.command("sell-energy")(selling.sell_energy)
app.command("reverse")(selling.reverse)
app.command("sell")(selling.sell)
app.command("alarms")(watching.alarms)
app.command("exceptions")(watching.exceptions)
app.command("fleet")(watching.fleet)


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


def main() -> None:
    """Entry point of the `wattvend` command."""
    app(prog_name="wattvend")
