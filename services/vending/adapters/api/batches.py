"""Batches, and the operations that they are while they run."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from collections import Counter
from collections.abc import Iterable
from typing import Any

from services.common.kernel import filters
from services.common.kernel.filters import Fields
from services.common.kernel.names import Pattern
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.vending.adapters import names
from services.vending.adapters.api import operations
from services.vending.adapters.api.desk import Desk, Handlers, said
from services.vending.application.batches import Pace
from services.vending.application.drafting import Draft
from services.vending.domain import checks
from services.vending.domain.approval import Failure
from services.vending.domain.batch import (
    TARGETS_MAX,
    Batch,
    Kind,
    Of,
    Outcome,
    Result,
    Status,
    Target,
    Terms,
)
from services.vending.domain.batching import (
    CancelBatch,
    PauseBatch,
    ResumeBatch,
    SubmitBatch,
    batch_not_found,
)
from services.vending.domain.decisions import Request
from services.vending.domain.tables import BatchRow
from wattvend.vending.v1 import batches_pb2 as pb
from wattvend.vending.v1 import batches_pb2_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["BatchService"].full_name
COLLECTION = "batches"
"""Of operations."""
SHOWN_FIRST = 10
_TARGETS: dict[Of, Pattern] = {Of.METERS: names.METER, Of.ACCOUNTS: names.ACCOUNT}
_Move = type[PauseBatch | ResumeBatch | CancelBatch]
_LISTED: Fields = {
    "status": filters.choice(*Status),
    "kind": filters.choice(*Kind),
    "legal_entity": filters.name(names.LEGAL_ENTITY),
}
_RESULTS: Fields = {
    "outcome": filters.choice(*Outcome),
    "reason": filters.text(),
    "site": filters.name(names.SITE),
}


class BatchApi(Handlers, batches_pb2_grpc.BatchServiceServicer):
    """The servicer of BatchService."""

    async def CreateBatch(self, request: pb.CreateBatchRequest, context: Any) -> pb.Batch:
        """Draft a batch."""
        checks.check_choice("kind", request.kind, tuple(Kind))
        terms = Terms(
            Kind(request.kind),
            request.reason,
            request.method or None,
            names.TARIFF.id_if("tariff", request.tariff) or None,
            names.POLICY.id_if("policy", request.policy) or None,
            said(request, "from_ms"),
            said(request, "to_ms"),
        )
        checks.check_between("list", len(request.list.targets), 0, TARGETS_MAX)
        pattern = _TARGETS[terms.rule.of]
        listed = tuple(
            (pattern.id("list", target.name), said(target, "amount_minor"))
            for target in request.list.targets
        )
        asked = await self._desk.request(request, context)
        amount_minor = said(request, "amount_minor")
        draft = Draft(asked, terms, request.filter, listed, amount_minor)
        batch = await self._office.batches.create(draft, validate_only=request.validate_only)
        message = self._batch(batch)
        if request.validate_only:
            message.name = message.operation = ""
        return message

    async def GetBatch(self, request: pb.GetBatchRequest, context: Any) -> pb.Batch:
        """Return a batch, and what of it waits for its site's budget."""
        batches = self._office.batches
        batch = await batches.of(names.BATCH.id("name", request.name))
        return self._batch(batch, await batches.paces(batch), batches.waits_for(batch.batch_id))

    async def ListBatches(
        self, request: pb.ListBatchesRequest, context: Any
    ) -> pb.ListBatchesResponse:
        """Return a page of batches, the oldest first."""
        wanted = filters.parse(request.filter, _LISTED)
        size = page_size_of(request.page_size)
        listed = (COLLECTION, request.filter)
        cursor = cursor_of(listed, request.page_token, (int,))

        def is_wanted(row: BatchRow) -> bool:
            values = {"status": row.status, "kind": row.kind, "legal_entity": row.legal_entity}
            return filters.holds(wanted, values)

        after = int(cursor[0]) if cursor else 0
        found = await self._office.batches.page(is_wanted, after, size + 1)
        more = token_of(listed, (found[size - 1][0],)) if len(found) > size else ""
        return pb.ListBatchesResponse(
            batches=[self._batch(batch) for _, batch in found[:size]], next_page_token=more
        )

    async def PreviewBatch(self, request: pb.PreviewBatchRequest, context: Any) -> pb.BatchPreview:
        """Say what a draft would do."""
        batches = self._office.batches
        batch = await batches.of(names.BATCH.id("name", request.name))
        preview = await batches.preview(batch.batch_id)
        some = range(min(SHOWN_FIRST, len(batch.targets)))
        first = await batches.tried(batch, some)
        sites = Counter({names.SITE.name(site): count for site, count in preview.sites.items()})
        return pb.BatchPreview(
            batch=self._batch(batch),
            sites=_counts(sites),
            states=_counts(preview.states),
            outcomes=_counts(preview.outcomes),
            reasons=_counts(preview.reasons),
            needs_approval=preview.needs_two,
            first=[_result(batch, result) for result in first],
            rows_count=preview.rows,
        )

    async def SubmitBatch(self, request: pb.SubmitBatchRequest, context: Any) -> Any:
        """Let a draft be carried out."""
        batch_id = names.BATCH.id("name", request.name)
        command = SubmitBatch(await self._desk.request(request, context), batch_id)
        await self._office.batches.of(batch_id)
        batch = await self._office.batches.submit(command)
        return operations.message(COLLECTION, _view(batch, self._desk))

    async def PauseBatch(self, request: pb.PauseBatchRequest, context: Any) -> pb.Batch:
        """Let no further round begin until it is resumed."""
        return await self._moved(PauseBatch, request, context)

    async def ResumeBatch(self, request: pb.ResumeBatchRequest, context: Any) -> pb.Batch:
        """Let a paused batch go on."""
        return await self._moved(ResumeBatch, request, context)

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: Any) -> pb.Batch:
        """Let no further round begin, ever."""
        return await self._moved(CancelBatch, request, context)

    async def ListBatchResults(
        self, request: pb.ListBatchResultsRequest, context: Any
    ) -> pb.ListBatchResultsResponse:
        """Return a page of targets, in their order, with what came of each or would."""
        wanted = filters.parse(request.filter, _RESULTS)
        size = page_size_of(request.page_size)
        listed = ("batch-results", request.parent, request.filter)
        cursor = cursor_of(listed, request.page_token, (int,))
        batches = self._office.batches
        batch, known = await batches.results(names.BATCH.id("parent", request.parent))
        found: list[Result] = []
        for number in range(int(cursor[0]) if cursor else 0, len(batch.targets)):
            if batch.status is Status.DRAFT:
                (result,) = await batches.tried(batch, (number,))
            else:
                result = known.get(number) or Result(number, batch.outcome(number))
            if filters.holds(wanted, _values(batch, result)):
                if len(found) == size:
                    token = token_of(listed, (number,))
                    return _results(batch, found, token)
                found.append(result)
        return _results(batch, found, "")

    async def _moved(self, command: _Move, request: Any, context: Any) -> pb.Batch:
        asked = await self._desk.request(request, context)
        moved = command(asked, names.BATCH.id("name", request.name), request.reason)
        return self._batch(await self._office.batches.move(moved))

    def _batch(self, batch: Batch, paces: Iterable[Pace] = (), waits_for: str = "") -> pb.Batch:
        return _message(batch, self._desk, paces, waits_for)


class BatchOperations:
    """Batches that were submitted, as operations."""

    def __init__(self, desk: Desk) -> None:
        """Ask the office of `desk`."""
        self._desk = desk
        self._batches = desk.office.batches

    async def view(self, id_: str) -> operations.View:
        """Return one. Raises InvalidInput where none was submitted."""
        batch = await self._batches.of(id_)
        if batch.submitted_at_ms is None:
            raise batch_not_found(id_).as_error()
        paces, waits_for = await self._batches.paces(batch), self._batches.waits_for(id_)
        return _view(batch, self._desk, paces, waits_for)

    async def page(
        self, done: bool | None, after: int, limit: int
    ) -> list[tuple[int, operations.View]]:
        """Return (position, view) above a position, oldest first."""

        def is_wanted(row: BatchRow) -> bool:
            is_over = row.status in (Status.CANCELLED, Status.FINISHED) and not row.round_is_open
            return row.status != Status.DRAFT and done in (None, is_over)

        found = await self._batches.page(is_wanted, after, limit)
        return [(position, _view(batch, self._desk)) for position, batch in found]

    async def cancel(self, id_: str, request: Request) -> None:
        """Let no further round begin."""
        await self._batches.move(CancelBatch(request, id_, "cancelled as an operation"))


def _view(
    batch: Batch, desk: Desk, paces: Iterable[Pace] = (), waits_for: str = ""
) -> operations.View:
    is_done = batch.is_over
    failure = None
    if is_done and batch.status is Status.CANCELLED:
        failure = Failure(Reason.CANCELLED.value, f"batch {batch.batch_id} was cancelled")
    return operations.View(
        batch.batch_id,
        _message(batch, desk, paces, waits_for),
        is_done,
        _summary(batch) if is_done else None,
        failure,
    )


def _message(batch: Batch, desk: Desk, paces: Iterable[Pace], waits_for: str) -> pb.Batch:
    terms = batch.terms
    name = names.BATCH.name(batch.batch_id)
    is_submitted = batch.submitted_at_ms is not None
    return pb.Batch(
        name=name,
        kind=terms.kind.value,
        status=batch.status.value,
        legal_entity=names.LEGAL_ENTITY.name(batch.legal_entity),
        currency=batch.currency,
        reason=terms.reason,
        method=terms.method or "",
        tariff=names.TARIFF.name_if(terms.tariff_id),
        policy=names.POLICY.name_if(terms.policy_id),
        filter=batch.filter,
        as_of_ms=batch.as_of_ms,
        summary=_summary(batch),
        total_minor=batch.total_minor,
        created_by=batch.creator.who,
        created_at_ms=batch.created_at_ms,
        submitted_by=batch.behind.who,
        submitted_at_ms=batch.submitted_at_ms,
        approved_by=batch.behind.approved_by,
        last_reason=batch.said,
        paces=[
            pb.BatchPace(
                site=names.SITE.name(pace.site_id),
                waiting_count=pace.waiting,
                per_minute=pace.per_minute,
                next_at_ms=pace.next_at_ms,
                last_at_ms=pace.last_at_ms,
            )
            for pace in paces
        ],
        operation=f"{operations.COLLECTION}/{name}" if is_submitted else "",
        version=desk.version(batch.answers.revision),
        from_ms=terms.from_ms,
        to_ms=terms.to_ms,
        waits_for=waits_for,
    )


def _summary(batch: Batch) -> pb.BatchSummary:
    counts = batch.counts
    return pb.BatchSummary(
        targets_count=batch.targets_count,
        waiting_count=counts[Outcome.WAITING],
        done_count=counts[Outcome.DONE],
        refused_count=counts[Outcome.REFUSED],
        skipped_count=counts[Outcome.SKIPPED],
        rows_count=batch.rows,
    )


def _counts(counted: Counter[Any]) -> list[pb.BatchCount]:
    return [pb.BatchCount(value=str(value), count=count) for value, count in counted.most_common()]


def _values(batch: Batch, result: Result) -> dict[str, filters.Value]:
    site_id = batch.targets[result.target].site_id
    return {"outcome": result.outcome.value, "reason": result.reason, "site": site_id}


def _result(batch: Batch, result: Result) -> pb.BatchResult:
    target: Target = batch.targets[result.target]
    message = pb.BatchResult(
        target=_TARGETS[batch.terms.rule.of].name(target.target_id),
        site=names.SITE.name(target.site_id),
        amount_minor=target.amount_minor,
        outcome=result.outcome.value,
        revision=result.revision,
        reason=result.reason,
        message=result.message,
    )
    if result.export is not None:
        message.rows_count = result.export.rows
        message.size_bytes = result.export.size_bytes
        message.sha256 = result.export.sha256
        message.as_of_ms = result.export.as_of_ms
    return message


def _results(batch: Batch, found: list[Result], token: str) -> pb.ListBatchResultsResponse:
    return pb.ListBatchResultsResponse(
        results=[_result(batch, result) for result in found],
        next_page_token=token,
        currency=batch.currency,
    )
