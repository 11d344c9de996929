"""Openings: accounts with their meters and first sales, at once or prepared before."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

from services.common.kernel import names as patterns
from services.common.kernel.errors import InvalidInput
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.vending.adapters import names
from services.vending.adapters.api import operations
from services.vending.adapters.api.desk import Desk, Handlers, said
from services.vending.domain.decisions import Rejection, Request
from services.vending.domain.opening import (
    Cancel,
    FirstSale,
    Opening,
    Plan,
    PlannedMeter,
    too_many,
)
from services.vending.domain.tables import OpeningRow
from wattvend.vending.v1 import openings_pb2 as pb
from wattvend.vending.v1 import openings_pb2_grpc, vending_pb2

COLLECTION = "openings"
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["OpeningService"].full_name


class OpeningApi(Handlers, openings_pb2_grpc.OpeningServiceServicer):
    """The servicer of OpeningService."""

    async def CreateOpening(self, request: pb.CreateOpeningRequest, context: Any) -> pb.Opening:
        """Prepare an opening, and start it; or say what would be wrong with it."""
        wrong = too_many(len(request.opening.meters))
        if wrong:  # before all of them are looked at
            raise wrong[0].as_error()
        asked = await self._desk.request(request, context)
        plan, wrong = _plan(request.opening_id, request.opening)
        sale = _sale(request.opening)
        if request.prepare_only and sale.amount_minor:
            text = "what is only prepared sells nothing: say its first sale when it is started"
            wrong.append(Rejection(Reason.INVALID_ARGUMENT, text, "first_sale"))
        if request.validate_only:
            wrong = wrong or await self._office.openings.problems(asked, plan, sale)
            return _validated(request, wrong)
        if wrong:
            raise wrong[0].as_error()
        opened = await self._office.openings.prepare(
            asked, plan, None if request.prepare_only else sale
        )
        return self._desk.told(_message, opened)

    async def StartOpening(self, request: pb.StartOpeningRequest, context: Any) -> pb.Opening:
        """Open what is prepared."""
        opened = await self._office.openings.start(
            await self._desk.request(request, context),
            names.OPENING.id("name", request.name),
            request.subject_id or None,
            _sale(request),
        )
        return self._desk.told(_message, opened)

    async def CancelOpening(self, request: pb.CancelOpeningRequest, context: Any) -> pb.Opening:
        """Let what is prepared not be opened."""
        command = Cancel(
            await self._desk.request(request, context),
            names.OPENING.id("name", request.name),
            request.reason,
        )
        return self._desk.told(_message, await self._office.openings.cancel(command))

    async def GetOpening(self, request: pb.GetOpeningRequest, context: Any) -> pb.Opening:
        """Return the newest opening of an account."""
        account_id = names.OPENING.id("name", request.name)
        return self._desk.told(_message, await self._office.openings.of(account_id))

    async def ListOpenings(
        self, request: pb.ListOpeningsRequest, context: Any
    ) -> pb.ListOpeningsResponse:
        """Return a page of what is prepared or started, the oldest first."""
        listed = ("openings",)
        after = cursor_of(listed, request.page_token, (int,))
        found, last = await self._office.openings.page(
            int(after[0]) if after else 0, page_size_of(request.page_size)
        )
        return pb.ListOpeningsResponse(
            openings=[self._desk.told(_message, each) for each in found],
            next_page_token=token_of(listed, (last,)) if last else "",
        )


class OpeningOperations:
    """services.vending.adapters.api.operations.Kind: openings that were started.

    Metadata and response are an Opening.
    """

    def __init__(self, desk: Desk) -> None:
        """Look at those of the desk's office."""
        self._desk = desk
        self._openings = desk.office.openings

    async def view(self, id_: str) -> operations.View:
        """Return one. Raises InvalidInput(OPENING_NOT_FOUND)."""
        return self._view(*await self._openings.look(id_))

    async def page(
        self, done: bool | None, after: int, limit: int
    ) -> list[tuple[int, operations.View]]:
        """Return (position, view) above a position, oldest first."""
        is_open = None if done is None else not done
        found = await self._openings.started(is_open, after, limit)
        return [(row.position, self._view(row, state)) for row, state in found]

    async def cancel(self, id_: str, request: Request) -> None:
        """Refuse: its account may be open already, and its first sale is paid."""
        _, state = await self._openings.look(id_)
        text = f"the opening of account {state.plan.account_id} is started and goes on by itself"
        raise InvalidInput(Reason.OPENING_NOT_PREPARED, f"{text}: wait for that", field="name")

    def _view(self, row: OpeningRow, state: Opening) -> operations.View:
        told = self._desk.told(_message, state)
        return operations.View(
            row.opening_id, told, not row.is_open, None if row.is_open else told, state.failure
        )


def _plan(account_id: str, asked: pb.Opening) -> tuple[Plan, list[Rejection]]:
    """Return what shall be opened, and which names in it are none."""
    wrong: list[Rejection] = []

    def id_of(pattern: patterns.Pattern, field: str, name: str) -> str:
        try:
            return pattern.id(field, name)
        except InvalidInput as no_name:
            wrong.append(Rejection(no_name.reason, no_name.message, no_name.field))
            return ""

    plan = Plan(
        account_id,
        id_of(names.SITE, "site", asked.site),
        asked.subject_id or None,
        asked.commodity,
        id_of(names.TARIFF, "tariff", asked.tariff),
        id_of(names.POLICY, "policy", asked.policy),
        tuple(
            PlannedMeter(id_of(names.METER, "meter", each.meter), said(each, "register_milli"))
            for each in asked.meters
        ),
    )
    return plan, wrong


def _sale(asked: pb.Opening | pb.StartOpeningRequest) -> FirstSale:
    sale = asked.first_sale
    return FirstSale(sale.amount_minor, sale.method, sale.currency)


def _validated(request: pb.CreateOpeningRequest, wrong: list[Rejection]) -> pb.Opening:
    answer = pb.Opening()
    answer.CopyFrom(request.opening)
    answer.name = names.OPENING.name(request.opening_id)
    answer.account = names.ACCOUNT.name(request.opening_id)
    answer.problems.extend(
        pb.OpeningProblem(reason=each.reason.value, field=each.field, message=each.message)
        for each in wrong
    )
    return answer


def _message(state: Opening, version: vending_pb2.BookVersion) -> pb.Opening:
    plan, sale = state.plan, state.sale
    answer = pb.Opening(
        name=names.OPENING.name(plan.account_id),
        account=names.ACCOUNT.name(plan.account_id),
        site=names.SITE.name(plan.site_id),
        subject_id=plan.subject_id or "",
        commodity=plan.commodity,
        tariff=names.TARIFF.name(plan.tariff_id),
        policy=names.POLICY.name(plan.policy_id),
        meters=[
            pb.OpeningMeter(
                meter=names.METER.name(each.meter_id), register_milli=each.register_milli
            )
            for each in plan.meters
        ],
        status=state.status.value,
        left_out=[
            pb.LeftOutMeter(
                meter=names.METER.name(each.meter_id), reason=each.reason, message=each.message
            )
            for each in state.left_out
        ],
        version=version,
        operation=operations.name_of(COLLECTION, state.opening_id) if state.opening_id else "",
    )
    if sale.amount_minor:
        answer.first_sale.CopyFrom(
            pb.FirstSale(amount_minor=sale.amount_minor, method=sale.method, currency=sale.currency)
        )
    if state.failure is not None:
        answer.problems.add(reason=state.failure.reason, message=state.failure.message)
    return answer
