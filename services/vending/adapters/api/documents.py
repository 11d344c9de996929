"""Documents of tariffs and policies, and the versions that came of them."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

import orjson

from services.common.kernel import filters
from services.common.kernel.errors import InvalidInput
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.vending.adapters import names
from services.vending.adapters.api.desk import Handlers
from services.vending.adapters.api.prices import policy_of, tariff_of
from services.vending.application.documents import Paper
from services.vending.domain import policy
from services.vending.domain.document import Kind, State, Submit, Version, Withdraw
from services.vending.domain.events.prices import PolicyScheduled, PolicyVersion, TariffPublished
from services.vending.domain.origin import Origin
from wattvend.vending.v1 import documents_pb2 as pb
from wattvend.vending.v1 import documents_pb2_grpc, vending_pb2

FILTER_FIELDS = {
    "state": filters.choice(*State),
    "kind": filters.choice(*Kind),
    "tariff": filters.name(names.TARIFF),
    "policy": filters.name(names.POLICY),
    "legal_entity": filters.name(names.LEGAL_ENTITY),
}
PARENTS = {Kind.TARIFF: names.TARIFF, Kind.POLICY: names.POLICY}


class DocumentApi(Handlers, documents_pb2_grpc.DocumentServiceServicer):
    """The servicer of DocumentService."""

    async def CreateDocument(self, request: pb.CreateDocumentRequest, context: Any) -> pb.Document:
        """Let a draft exist."""
        asked = await self._desk.request(request, context)
        document = request.document
        match document.WhichOneof("content"):
            case "tariff":
                lead_ms = self._office.terms.tariff_lead_ms
                publication: Any = tariff_of(document.tariff, asked, lead_ms)
            case "policy":
                publication = policy_of(document.policy, asked)
            case _:
                text = "document: write what it shall say, a tariff or a policy"
                raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="document")
        replaces = names.DOCUMENT.id_if("replaces", document.replaces)
        return self._told(await self._office.documents.draft(asked, publication, replaces))

    async def SubmitDocument(self, request: pb.SubmitDocumentRequest, context: Any) -> pb.Document:
        """Ask for the publication of a draft."""
        asked = await self._desk.request(request, context)
        command = Submit(asked, names.DOCUMENT.id("name", request.name))
        return self._told(await self._office.documents.submit(command))

    async def WithdrawDocument(
        self, request: pb.WithdrawDocumentRequest, context: Any
    ) -> pb.Document:
        """Let a draft not be submitted, or decline what became of it."""
        asked = await self._desk.request(request, context)
        document_id = names.DOCUMENT.id("name", request.name)
        command = Withdraw(asked, document_id, request.reason)
        return self._told(await self._office.documents.withdraw(command))

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Any) -> pb.Document:
        """Return a document as it is now."""
        document_id = names.DOCUMENT.id("name", request.name)
        return self._told(await self._office.documents.paper(document_id))

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: Any
    ) -> pb.ListDocumentsResponse:
        """Return a page of documents, the oldest first."""
        size = page_size_of(request.page_size)
        wanted = filters.parse(request.filter, FILTER_FIELDS)
        listed = ("documents", request.filter)
        after = cursor_of(listed, request.page_token, (int,))
        found, last = await self._office.documents.page(wanted, int(after[0]) if after else 0, size)
        return pb.ListDocumentsResponse(
            documents=map(self._told, found),
            next_page_token=token_of(listed, (last,)) if last else "",
        )

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Any
    ) -> pb.ListVersionsResponse:
        """Return a page of the versions of a tariff or policy, the oldest first."""
        size = page_size_of(request.page_size)
        of_policy = request.parent.startswith("policies/")
        kind = Kind.POLICY if of_policy else Kind.TARIFF
        target_id = PARENTS[kind].id("parent", request.parent)
        listed = ("versions", request.parent)
        cursor = cursor_of(listed, request.page_token, (int,))
        after = int(cursor[0]) if cursor else 0
        found = await self._office.documents.versions(kind, target_id)
        rest = [(version, state) for version, state in found if version.number > after]
        last = rest[size - 1][0].number if len(rest) > size else None
        return pb.ListVersionsResponse(
            versions=[_version(version, state) for version, state in rest[:size]],
            next_page_token=token_of(listed, (last,)) if last else "",
        )

    def _told(self, paper: Paper) -> pb.Document:
        state, life = paper.document, paper.life
        return pb.Document(
            name=names.DOCUMENT.name(state.document_id),
            state=life.state,
            replaces=names.DOCUMENT.name_if(state.replaces),
            base_version=state.base_version,
            stale=life.is_stale,
            drafted_by=state.drafted_by.who,
            drafted_at_ms=state.drafted_at_ms,
            submitted_by=_who(life.by),
            approval=names.APPROVAL.name_if(paper.approval_id),
            decided_by=_who(life.decided_by),
            reason=life.reason,
            failure_reason=life.failure.reason if life.failure else "",
            failure_message=life.failure.message if life.failure else "",
            published_version=life.version.number if life.version else 0,
            begins_at_ms=life.version.begins_ms if life.version else 0,
            version=self._desk.version(state.answers.revision),
            **_content(state.kind, orjson.loads(state.content)),
        )


def _who(origin: Origin | None) -> str:
    return origin.who if origin else ""


def _content(kind: str, said: dict[str, Any]) -> dict[str, Any]:
    """Return what fills `content`, of a publication's fields."""
    said = dict(said)
    legal_entity = names.LEGAL_ENTITY.name_if(said.pop("legal_entity"))
    name = PARENTS[Kind(kind)].name(said.pop(f"{kind}_id"))
    said.pop("lead_ms", None)
    made = (
        vending_pb2.PublishTariffRequest
        if kind == Kind.TARIFF
        else (vending_pb2.PublishPolicyRequest)
    )
    return {kind: made(name=name, legal_entity=legal_entity, **said)}


def _version(version: Version, state: State) -> pb.Version:
    event = version.content
    said = _tariff_says(event) if isinstance(event, TariffPublished) else _policy_says(event)
    return pb.Version(
        number=version.number,
        state=state,
        begins_at_ms=version.begins_ms,
        published_at_ms=version.published_at_ms,
        published_by=version.published_by.who,
        approved_by=event.origin.approved_by,
        document=names.DOCUMENT.name_if(version.document_id),
        **_content(Kind.TARIFF if isinstance(event, TariffPublished) else Kind.POLICY, said),
    )


def _tariff_says(event: TariffPublished) -> dict[str, Any]:
    fields = ("tariff_id", "commodity", "currency", "legal_entity", "price_micro", "plan")
    said = {name: getattr(event, name) for name in fields}
    return said | {"effective_at_ms": event.effective_at_ms}


def _policy_says(event: PolicyVersion) -> dict[str, Any]:
    return policy.said_in_minor(event) | {
        "policy_id": event.policy_id,
        "effective_at_ms": event.effective_at_ms if isinstance(event, PolicyScheduled) else 0,
    }
