"""`wattvend explain`: why there was a cut-off, a charge, a balance."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from services.common.kernel import names
from tools.cli import explained
from tools.cli.asking import run
from wattvend.reporting.v1 import reporting_pb2 as r


class CutoffByDefault(TyperGroup):
    """`explain ACCOUNT` is `explain cutoff ACCOUNT`: what is asked most, in a hurry."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` name."""
        named = args[0] in self.commands
        return super().resolve_command(ctx, args if named else ["cutoff", *args])


explain_app = typer.Typer(
    cls=CutoffByDefault,
    no_args_is_help=True,
    help="Explain a cut-off (explain ACCOUNT), a charge, a balance.",
)


@explain_app.command("cutoff")
def explain_cutoff(
    account: Annotated[str, typer.Argument(help="account id")],
    decision: Annotated[str, typer.Option(help="alarm id; default: the newest cut-off")] = "",
) -> None:
    """Explain a cut-off: readings, charge, tariff, threshold, policy, intent, read-back."""
    request = r.ExplainCutoffRequest(
        account=names.ACCOUNT.name(account), alarm=names.ALARM.name_if(decision)
    )
    run(lambda clients: clients.reporting("ExplainCutoff", request), explained.cutoff)


@explain_app.command("charge")
def explain_charge(
    meter: Annotated[str, typer.Argument(help="meter id")],
    epoch: Annotated[int, typer.Option(min=0, help="with --sequence; default: the newest")] = 0,
    sequence: Annotated[int, typer.Option(min=0, help="with --epoch; default: the newest")] = 0,
) -> None:
    """Explain a charge: readings, ratio, every version of its tariff, every line, the totals."""
    request = r.ExplainChargeRequest(meter=names.METER.name(meter), epoch=epoch, sequence=sequence)
    run(lambda clients: clients.reporting("ExplainCharge", request), explained.charge)


@explain_app.command("fees")
def explain_fees(
    account: Annotated[str, typer.Argument(help="account id")],
    sequence: Annotated[int, typer.Option(min=0, help="of postings; default: the newest")] = 0,
) -> None:
    """Explain a posting of an account's fees: every day or month, every version of its tariff."""
    request = r.ExplainChargeRequest(account=names.ACCOUNT.name(account), sequence=sequence)
    run(lambda clients: clients.reporting("ExplainCharge", request), explained.charge)


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
    run(lambda clients: clients.reporting("ExplainBalance", request), explained.balance)
