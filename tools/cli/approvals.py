"""`wattvend approval`, `wattvend authority`: what needs a second person, and what does not."""

import json
from typing import Annotated
from uuid import uuid4

import typer

from services.common.kernel import filters, names
from services.common.kernel.units import CURRENCIES
from tools.cli import show
from tools.cli.asking import Reason, RequestId, amount_of, minor_of, run
from wattvend.vending.v1 import vending_pb2 as v

approval_app = typer.Typer(
    no_args_is_help=True, help="What waits for a second person: list, approve, decline."
)
authority_app = typer.Typer(
    no_args_is_help=True, help="What one person may do alone: publish, show."
)
ApprovalId = Annotated[str, typer.Argument(help="id of the proposal")]


def _rule(text: str, currency: str) -> tuple[str, int | None]:
    """Return what one person may do, as typed: ACTION, or ACTION=UP_TO: money, or a count."""
    action, is_limited, limit = text.partition("=")
    if not is_limited:
        return action, None
    if action in show.COUNTED:
        if not limit.isdecimal():
            raise typer.BadParameter(f"{action} is counted: {limit!r} is no whole number")
        return action, int(limit)
    known = CURRENCIES.get(currency)
    if known is None:
        raise typer.BadParameter(f"{currency!r} is no currency")
    return action, minor_of(amount_of(limit), known.minor_decimals)


def _rules(alone: list[str], currency: str) -> str:
    """Return what one person may do, as JSON; leaves with an action that is named twice."""
    rules: dict[str, int | None] = {}
    for text in alone:
        action, up_to = _rule(text, currency)
        if action in rules:
            raise typer.BadParameter(f"{action} is named twice; say once up to what")
        rules[action] = up_to
    return json.dumps(rules)


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
        rules=_rules(alone, currency),
        proposals_last_ms=wait_hours * 3_600_000,
    )
    run(
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
    run(lambda clients: clients.vending("GetAuthority", request), show.authority)


@approval_app.command("list")
def approval_list(
    legal_entity: Annotated[str, typer.Option(help="default: all")] = "",
    page: Annotated[str, typer.Option(help="token of the page, as the one before told it")] = "",
) -> None:
    """List what waits for a second person, the oldest first."""
    of = filters.wanting(legal_entity=names.LEGAL_ENTITY.name_if(legal_entity))
    request = v.ListApprovalsRequest(filter=of, page_token=page)
    run(lambda clients: clients.vending("ListApprovals", request), show.approvals)


@approval_app.command("show")
def approval_show(approval: ApprovalId) -> None:
    """Show what was proposed, and what became of it."""
    request = v.GetApprovalRequest(name=names.APPROVAL.name(approval))
    run(lambda clients: clients.vending("GetApproval", request), show.approval)


@approval_app.command("approve")
def approval_approve(approval: ApprovalId, reason: Reason, request_id: RequestId = "") -> None:
    """Let it happen: what was proposed is carried out at once."""
    request = v.ApproveRequest(
        request_id=request_id or str(uuid4()), name=names.APPROVAL.name(approval), reason=reason
    )
    run(lambda clients: clients.vending("Approve", request), show.approval, request.request_id)


@approval_app.command("decline")
def approval_decline(approval: ApprovalId, reason: Reason, request_id: RequestId = "") -> None:
    """Let it not happen."""
    request = v.DeclineRequest(
        request_id=request_id or str(uuid4()), name=names.APPROVAL.name(approval), reason=reason
    )
    run(lambda clients: clients.vending("Decline", request), show.approval, request.request_id)
