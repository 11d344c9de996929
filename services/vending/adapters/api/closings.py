"""Closings: what ends an account, or takes meters out of it, and how far it is."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

from services.common.kernel import filters
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.vending.adapters import names
from services.vending.adapters.api import operations
from services.vending.adapters.api.desk import Desk, Handlers, said
from services.vending.application.closings import Look
from services.vending.domain import settling
from services.vending.domain.approval import Failure
from services.vending.domain.closing import Source
from services.vending.domain.closings import CancelClosing, CloseAccount, CloseMeters, GiveRegister
from services.vending.domain.decisions import Request
from services.vending.domain.events.closings import (
    AccountCloseRefused,
    AccountSettled,
    MetersClosed,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.settling import SettleAccount
from services.vending.domain.tables import ClosingRow
from wattvend.vending.v1 import closings_pb2 as pb
from wattvend.vending.v1 import closings_pb2_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ClosingService"].full_name
COLLECTION = "closings"
ALL = "accounts/-"
ANYBODYS = f"{ALL}/{COLLECTION}/"
RUNNING, CLOSED, REFUSED, CANCELLED = "running", "closed", "refused", "cancelled"


class ClosingApi(Handlers, closings_pb2_grpc.ClosingServiceServicer):
    """The servicer of ClosingService."""

    async def CreateClosing(self, request: pb.CreateClosingRequest, context: Any) -> Any:
        """Begin a closing, of a whole account or of some meters."""
        asked = await self._desk.request(request, context)
        account_id = names.ACCOUNT.id("parent", request.parent)
        meters = tuple(names.METER.id("meters", name) for name in request.meters)
        command: CloseAccount | CloseMeters
        if meters:
            command = CloseMeters(
                asked, account_id, meters, request.without_cut, request.lasts_ms, request.reason
            )
        else:
            command = CloseAccount(
                asked,
                account_id,
                request.method,
                request.without_cut,
                request.lasts_ms,
                request.reason,
            )
        look = await self._office.closings.begin_and_look(command)
        return operations.message(COLLECTION, view_of(look))

    async def GetClosing(self, request: pb.GetClosingRequest, context: Any) -> pb.Closing:
        """Return a closing as it is now."""
        return closing(await self._look(request.name))

    async def ListClosings(
        self, request: pb.ListClosingsRequest, context: Any
    ) -> pb.ListClosingsResponse:
        """Return a page of closings, the oldest first."""
        account_id = "" if request.parent == ALL else names.ACCOUNT.id("parent", request.parent)
        of = filters.parse(request.filter, {"running": filters.flag()})
        wanted = [runs for runs in (True, False) if filters.holds(of, {"running": runs})]
        size = page_size_of(request.page_size)
        listed = (COLLECTION, request.parent, request.filter)
        after = cursor_of(listed, request.page_token, (int,))
        rows: list[ClosingRow] = []
        if wanted:
            runs = wanted[0] if len(wanted) == 1 else None
            begin = int(after[0]) if after else 0
            rows = await self._office.closings.page(account_id, runs, begin, size + 1)
        looks = [await self._office.closings.looked(row) for row in rows[:size]]
        more = len(rows) > size
        return pb.ListClosingsResponse(
            closings=[closing(look) for look in looks],
            next_page_token=token_of(listed, (rows[size - 1].position,)) if more else "",
        )

    async def CancelClosing(self, request: pb.CancelClosingRequest, context: Any) -> pb.Closing:
        """Let a closing not go on."""
        asked = await self._desk.request(request, context)
        ids = await self._ids(request.name)
        await self._office.closings.cancel(CancelClosing(asked, *ids, request.reason))
        return closing(await self._look(request.name))

    async def GiveRegister(self, request: pb.GiveRegisterRequest, context: Any) -> pb.Closing:
        """Let a meter leave at a register that persons give."""
        asked = await self._desk.request(request, context)
        account_id, closing_id = await self._ids(request.name)
        meter_id = names.METER.id("meter", request.meter)
        register_milli, source = said(request, "register_milli"), Source.MANUAL
        if register_milli is None:
            ids = account_id, closing_id, meter_id
            register_milli = await self._office.closings.estimate(asked, *ids)
            source = Source.ESTIMATED
        await self._office.closings.give(
            GiveRegister(
                asked, account_id, closing_id, meter_id, register_milli, source, request.reason
            )
        )
        return closing(await self._look(request.name))

    async def SettleClosing(self, request: pb.SettleClosingRequest, context: Any) -> pb.Closing:
        """Pay out what is left, with a second person."""
        asked = await self._desk.request(request, context)
        look = await self._look(request.name)
        told = look.closing.told
        ids = look.row.account_id, look.row.closing_id
        command = SettleAccount(asked, *ids, told.refund_minor if told else 0)
        await self._office.closings.settle(command)
        return closing(await self._look(request.name))

    async def _ids(self, name: str) -> tuple[str, str]:
        """Return account and closing of a name, which may leave the account open (AIP-159)."""
        if name.startswith(ANYBODYS):
            found = await self._office.closings.look(name.removeprefix(ANYBODYS))
            return found.row.account_id, found.row.closing_id
        account_id, closing_id = names.CLOSING.ids("name", name)
        return account_id, closing_id

    async def _look(self, name: str) -> Look:
        account_id, closing_id = await self._ids(name)
        look = await self._office.closings.look(closing_id)
        if look.row.account_id != account_id:
            raise settling.closing_not_found(account_id, closing_id).as_error()
        return look


class ClosingOperations:
    """services.vending.adapters.api.operations.Kind: closings as operations."""

    def __init__(self, desk: Desk) -> None:
        """Look at those of the desk's office."""
        self._closings = desk.office.closings

    async def view(self, id_: str) -> operations.View:
        """Return one. Raises InvalidInput where there is none."""
        return view_of(await self._closings.look(id_))

    async def page(
        self, done: bool | None, after: int, limit: int
    ) -> list[tuple[int, operations.View]]:
        """Return (position, view) above a position, oldest first."""
        is_open = None if done is None else not done
        rows = await self._closings.page("", is_open, after, limit)
        return [(row.position, view_of(await self._closings.looked(row))) for row in rows]

    async def cancel(self, id_: str, request: Request) -> None:
        """Let it not go on, where no meter has left."""
        look = await self._closings.look(id_)
        why = "its operation was cancelled"
        await self._closings.cancel(CancelClosing(request, look.row.account_id, id_, why))


def view_of(look: Look) -> operations.View:
    """Return a closing as an operation: where it is over, with what it came to."""
    told = closing(look)
    row = look.row
    if row.is_open:
        return operations.View(row.closing_id, told, done=False)
    failure = None
    if told.state == CANCELLED:
        failure = Failure(Reason.CANCELLED.value, f"closing {row.closing_id} was cancelled")
    elif isinstance(refused := look.events[-1], AccountCloseRefused):
        why = settling.close_refusal(look.account, Reason(refused.reason), refused.charged_nano)
        failure = Failure(refused.reason, why.message)
    return operations.View(row.closing_id, told, True, None if failure else told, failure)


def closing(look: Look) -> pb.Closing:
    """Return a closing."""
    row, of = look.row, look.closing
    last = look.events[-1] if look.events else None
    refusal = last.reason if isinstance(last, AccountCloseRefused) else ""
    state = CANCELLED if of.cancelled else REFUSED if refusal else CLOSED
    return pb.Closing(
        name=names.CLOSING.name(row.account_id, row.closing_id),
        account=names.ACCOUNT.name(row.account_id),
        legal_entity=names.LEGAL_ENTITY.name(row.legal_entity),
        whole=not of.is_part,
        state=RUNNING if row.is_open else state,
        step=look.step,
        waits_since_ms=look.since_ms,
        meters=[
            pb.ClosingMeter(
                meter=names.METER.name(meter.meter_id),
                step=meter.step,
                waits_since_ms=meter.since_ms,
                register_milli=meter.register_milli,
            )
            for meter in look.meters
        ],
        without_cut=of.without_cut,
        method=of.method,
        reason=of.reason,
        began_at_ms=row.began_at_ms,
        deadline_ms=row.deadline_ms,
        ended_at_ms=last.occurred_at_ms if last else 0,
        settlement=_settlement(look),
        refusal_reason=refusal,
    )


def _settlement(look: Look) -> pb.ClosingSettlement | None:
    currency = look.account.currency
    if told := look.closing.told:
        waiting = pb.ClosingSettlement(
            charged_nano=told.charged_nano,
            account_sequence=told.account_sequence,
            currency=currency,
            rounding=told.rounding,
            refund_minor=told.refund_minor,
        )
        if not look.events:
            return waiting
    settled = _of(look.events, AccountSettled) or _of(look.events, MetersClosed)
    if settled is None:
        return None
    found = pb.ClosingSettlement(
        charged_nano=settled.charged_nano,
        account_sequence=settled.account_sequence,
        currency=currency,
    )
    if isinstance(settled, AccountSettled):
        for name in (
            *("left_nano", "refund_minor", "due_minor", "dropped_nano", "rounding"),
            *("recovered_emergency_minor", "recovered_debt_minor", "debt_left_minor"),
        ):
            setattr(found, name, getattr(settled, name))
    if refund := _of(look.events, CreditRefunded):
        found.receipt = names.RECEIPT.name(refund.receipt_id)
    return found


def _of(events: tuple[Event, ...], kind: type[Any]) -> Any:
    """Return the event of a type, where there is one."""
    return next((event for event in events if isinstance(event, kind)), None)
