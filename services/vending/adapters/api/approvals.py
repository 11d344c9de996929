"""What one person may do alone, and what waits for a second one."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

from services.common.kernel import filters
from services.common.kernel.errors import InvalidInput
from services.common.kernel.filters import Filter
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers
from services.vending.domain.approval import Approve, Decline
from services.vending.domain.authority import PublishAuthority
from wattvend.vending.v1 import vending_pb2 as pb

FILTER_FIELDS = {"legal_entity": filters.name(names.LEGAL_ENTITY)}


class Approvals(Handlers):
    """Their methods of VendingService."""

    async def PublishAuthority(
        self, request: pb.PublishAuthorityRequest, context: Any
    ) -> pb.Authority:
        """Publish what one person may do alone at a legal entity."""
        command = PublishAuthority(
            await self._desk.request(request, context),
            names.AUTHORITY.id("name", request.name),
            request.currency,
            request.rules,
            request.proposals_last_ms,
        )
        outcome = await self._office.publish_authority(command)
        return messages.authority(outcome.state, self._desk.version(outcome.revision))

    async def GetAuthority(self, request: pb.GetAuthorityRequest, context: Any) -> pb.Authority:
        """Return what one person may do alone at a legal entity."""
        state = await self._office.authority(names.AUTHORITY.id("name", request.name))
        return messages.authority(state, self._desk.version(state.answers.revision))

    async def Approve(self, request: pb.ApproveRequest, context: Any) -> pb.Approval:
        """Let a proposal happen, and carry it out."""
        command = Approve(
            await self._desk.request(request, context),
            names.APPROVAL.id("name", request.name),
            request.reason,
        )
        return self._desk.told(messages.approval, await self._office.approvals.approve(command))

    async def Decline(self, request: pb.DeclineRequest, context: Any) -> pb.Approval:
        """Let a proposal not happen."""
        command = Decline(
            await self._desk.request(request, context),
            names.APPROVAL.id("name", request.name),
            request.reason,
        )
        return self._desk.told(messages.approval, await self._office.approvals.decline(command))

    async def GetApproval(self, request: pb.GetApprovalRequest, context: Any) -> pb.Approval:
        """Return a proposal."""
        return self._desk.told(
            messages.approval,
            await self._office.approvals.proposal(names.APPROVAL.id("name", request.name)),
        )

    async def ListApprovals(
        self, request: pb.ListApprovalsRequest, context: Any
    ) -> pb.ListApprovalsResponse:
        """Return a page of what waits for a second person, the oldest first."""
        size = page_size_of(request.page_size)
        legal_entity = _legal_entity(filters.parse(request.filter, FILTER_FIELDS))
        listed = ("approvals", legal_entity)
        after = cursor_of(listed, request.page_token, (int,))
        found, last = await self._office.approvals.pending(
            legal_entity,
            int(after[0]) if after else 0,
            size,
        )
        return pb.ListApprovalsResponse(
            approvals=[self._desk.told(messages.approval, state) for state in found],
            next_page_token=token_of(listed, (last,)) if last else "",
        )


def _legal_entity(of: Filter) -> str:
    """Return the legal entity that a filter wants; "": all. Raises InvalidInput."""
    match of:
        case filters.All(()):
            return ""
        case filters.Match("legal_entity", "=", str(legal_entity)):
            return legal_entity
    raise InvalidInput(
        Reason.INVALID_ARGUMENT,
        'filter: what waits is listed by legal_entity alone; write legal_entity = "..." once',
        field="filter",
    )
