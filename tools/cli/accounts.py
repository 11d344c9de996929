"""`wattvend account`: what an account is under, whose it is, what it gives to another one."""

from typing import Annotated
from uuid import uuid4

import typer

from services.common.kernel import names
from tools.cli import show
from tools.cli.asking import Reason, RequestId, account_of, amount_of, minor_of, run
from tools.client import Clients
from wattvend.vending.v1 import accounts_pb2 as a

account_app = typer.Typer(
    no_args_is_help=True, help="Accounts: open, show, change, lend, refund, close."
)
AccountId = Annotated[str, typer.Argument(help="account id")]


@account_app.command("change-terms")
def account_change_terms(
    account: AccountId,
    reason: Reason,
    tariff: Annotated[str, typer.Option(help="tariff id; default: as it is")] = "",
    policy: Annotated[str, typer.Option(help="policy id; default: as it is")] = "",
    request_id: RequestId = "",
) -> None:
    """Give an account another tariff or policy, from its last charged register on."""
    if not (tariff or policy):
        raise typer.BadParameter("give --tariff, or --policy")
    request = a.ChangeTermsRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        tariff=names.TARIFF.name_if(tariff),
        policy=names.POLICY.name_if(policy),
        reason=reason,
    )
    run(lambda clients: clients.accounts("ChangeTerms", request), show.account, request.request_id)


@account_app.command("change-tenant")
def account_change_tenant(
    account: AccountId,
    reason: Reason,
    subject: Annotated[
        str, typer.Option(help="opaque id of the person, never a name; default: nobody is named")
    ] = "",
    with_owed: Annotated[
        bool, typer.Option("--with-owed", help="what is owed goes along; else nothing may be owed")
    ] = False,
    request_id: RequestId = "",
) -> None:
    """Let an account be another person's, with its credit and its meters."""
    request = a.ChangeTenantRequest(
        request_id=request_id or str(uuid4()),
        name=names.ACCOUNT.name(account),
        subject_id=subject,
        with_owed=with_owed,
        reason=reason,
    )
    run(lambda clients: clients.accounts("ChangeTenant", request), show.account, request.request_id)


@account_app.command("thaw")
def account_thaw(account: AccountId, reason: Reason, request_id: RequestId = "") -> None:
    """Let metering charge an account again that it froze, when the cause is mended."""
    request = a.ThawRequest(
        request_id=request_id or str(uuid4()), name=names.ACCOUNT.name(account), reason=reason
    )
    run(lambda clients: clients.accounts("Thaw", request), show.account, request.request_id)


@account_app.command("transfer")
def account_transfer(
    account: AccountId,
    to: Annotated[str, typer.Argument(help="id of the account where it goes")],
    reason: Reason,
    amount: Annotated[str, typer.Option(help="e.g. 12.50; default: all that is left")] = "",
    request_id: RequestId = "",
) -> None:
    """Give credit to another account, when metering has said what is left."""
    request, wanted = request_id or str(uuid4()), amount_of(amount) if amount else None

    async def work(clients: Clients) -> a.TransferCreditResponse:
        known = await account_of(clients, account)
        answer: a.TransferCreditResponse = await clients.accounts(
            "TransferCredit",
            a.TransferCreditRequest(
                request_id=request,
                name=names.ACCOUNT.name(account),
                to_account=names.ACCOUNT.name(to),
                amount_minor=0 if wanted is None else minor_of(wanted, known.minor_decimals),
                reason=reason,
            ),
        )
        return answer

    run(work, show.transfer, request)
