"""google.longrunning.Operations: what goes on in the book after its call was answered. No rules.

An operation is a view of a process that stands in the book, so it is there after a restart, and as
long as the book. Each kind of process says how its own are looked at: `operations/<kind>/<id>`.
"""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from google.longrunning import operations_grpc_pb2, operations_proto_pb2
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from services.common.kernel import filters
from services.common.kernel.errors import InvalidInput, shown
from services.common.kernel.ids import name_uuid
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime.grpc import Call, status_of
from services.vending.adapters.api.desk import Desk, Handlers
from services.vending.domain import checks
from services.vending.domain.approval import Failure
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.origin import Origin

SERVICE_NAME = operations_proto_pb2.DESCRIPTOR.services_by_name["Operations"].full_name
add_to_server = operations_grpc_pb2.add_OperationsServicer_to_server
COLLECTION = "operations"
LOOK_AGAIN_S = 0.2
WAIT_S = 5.0
"""How long WaitOperation waits where its caller says nothing."""


@value_class
class View:
    """An operation as it is now. `metadata`: how far it is; `done`: with `response` or `failure`.

    Neither of the two while it is not done.
    """

    id: str
    metadata: Message
    done: bool
    response: Message | None = None
    failure: Failure | None = None


class Kind(Protocol):
    """The processes of one kind. Their positions are those of the events that began them."""

    async def view(self, id_: str) -> View:
        """Return one. Raises InvalidInput where there is none."""
        ...

    async def page(self, done: bool | None, after: int, limit: int) -> list[tuple[int, View]]:
        """Return (position, view) above a position, oldest first; `done` None: all."""
        ...

    async def cancel(self, id_: str, request: Request) -> None:
        """Ask for its end, which may come later or not at all. Raises InvalidInput."""
        ...


def not_found(name: str) -> InvalidInput:
    """Return the refusal of a name that no operation has."""
    text = f"there is no operation {shown(name)}; list those that there are"
    return InvalidInput(Reason.OPERATION_NOT_FOUND, text, field="name")


class OperationsApi(Handlers, operations_grpc_pb2.OperationsServicer):
    """The servicer."""

    def __init__(self, kinds: Mapping[str, Callable[[Desk], Kind]], desk: Desk) -> None:
        """`kinds`: name of the collection, e.g. `batches`, → its processes."""
        super().__init__(desk)
        self._kinds = {name: made(desk) for name, made in sorted(kinds.items())}
        self._clock = desk.clock

    async def GetOperation(self, request: Any, context: Call) -> Any:
        """Return an operation as it is now."""
        return await self._operation(request.name)

    async def ListOperations(self, request: Any, context: Call) -> Any:
        """Return a page of operations: kind by kind, the oldest first."""
        of = filters.parse(request.filter, {"done": filters.flag()})
        wanted = [done for done in (True, False) if filters.holds(of, {"done": done})]
        done = wanted[0] if len(wanted) == 1 else None
        kinds = self._kinds_below(request.name) if wanted else []
        size = page_size_of(request.page_size)
        listed = (COLLECTION, request.name, request.filter)
        cursor = cursor_of(listed, request.page_token, (str, int))
        begin, after = (str(cursor[0]), int(cursor[1])) if cursor else ("", 0)
        answer = operations_proto_pb2.ListOperationsResponse()
        for kind in (known for known in kinds if known >= begin):
            left = size - len(answer.operations)
            found = await self._kinds[kind].page(done, after if kind == begin else 0, left + 1)
            answer.operations.extend(message(kind, view) for _, view in found[:left])
            if len(found) > left:
                last = found[left - 1][0] if left else (after if kind == begin else 0)
                answer.next_page_token = token_of(listed, (kind, last))
                break
        return answer

    async def WaitOperation(self, request: Any, context: Call) -> Any:
        """Return an operation when it is done, or as it is when the time is over.

        That is the caller's, but no more than `Desk.wait_s` lets a call wait.
        """
        wait_s = WAIT_S
        if request.HasField("timeout"):
            wait_s = request.timeout.seconds + request.timeout.nanos / 1e9
        wait_s = min(wait_s, self._desk.wait_s(context))
        until_ms = self._clock.monotonic_ms() + int(wait_s * 1000)
        operation = await self._operation(request.name)
        while not operation.done and self._clock.monotonic_ms() < until_ms:
            await asyncio.sleep(LOOK_AGAIN_S)
            operation = await self._operation(request.name)
        return operation

    async def CancelOperation(self, request: Any, context: Call) -> Any:
        """Ask for the end of an operation. One that is done stays as it is."""
        kind, id_ = self._parsed(request.name)
        if not (await self._view(kind, id_)).done:
            await self._kinds[kind].cancel(id_, self._request(request.name, context))
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: Any, context: Call) -> Any:
        """Refuse: an operation is part of the book."""
        await self._operation(request.name)
        text = "an operation stands in the book and is kept there; nothing is deleted"
        raise InvalidInput(Reason.OPERATION_IS_KEPT, text, field="name")

    async def _operation(self, name: str) -> Any:
        kind, id_ = self._parsed(name)
        return message(kind, await self._view(kind, id_))

    async def _view(self, kind: str, id_: str) -> View:
        """Return a process as an operation, which is what a caller asked for and may not find."""
        try:
            checks.check_id("name", id_)
            return await self._kinds[kind].view(id_)
        except InvalidInput:
            raise not_found(name_of(kind, id_)) from None

    def _kinds_below(self, name: str) -> list[str]:
        """Return the kinds of `operations`, which are all, or of `operations/<kind>`."""
        if name in ("", COLLECTION):
            return list(self._kinds)
        collection, _, kind = name.partition("/")
        if collection != COLLECTION or kind not in self._kinds:
            known = ", ".join((COLLECTION, *(f"{COLLECTION}/{kind}" for kind in self._kinds)))
            raise checks.invalid("name", f"{shown(name)} is no list; there are {known}")
        return [kind]

    def _parsed(self, name: str) -> tuple[str, str]:
        collection, kind, id_ = (*name.split("/", 2), "", "")[:3]
        if collection != COLLECTION or kind not in self._kinds or not id_:
            raise not_found(name)
        return kind, id_

    def _request(self, name: str, call: Call) -> Request:
        """Return the request of a cancellation, which the protocol gives no id: one a caller."""
        if call.actor:
            checks.check_actor(call.actor)
        return Request(
            call.caller,
            str(name_uuid("cancel-operation", call.caller, name)),
            fingerprint("CancelOperation", name),
            self._clock.now_ms(),
            origin=Origin(call.caller, call.actor, call.peer),
        )


def name_of(kind: str, id_: str) -> str:
    """Return the name of an operation."""
    return f"{COLLECTION}/{kind}/{id_}"


def message(kind: str, view: View) -> Any:
    """Return the message of an operation."""
    operation = operations_proto_pb2.Operation(name=name_of(kind, view.id), done=view.done)
    operation.metadata.Pack(view.metadata)
    if view.failure is not None:
        status = status_of(Reason(view.failure.reason), view.failure.message)
        operation.error.CopyFrom(status)
    elif view.response is not None:
        operation.response.Pack(view.response)
    return operation
