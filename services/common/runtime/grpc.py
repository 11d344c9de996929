"""gRPC servers, the way every service runs them: callers, deadlines, errors, health, reflection.

A handler raises the product's errors; the guard around it turns them into google.rpc.Status with
an ErrorInfo whose reason is from the catalogue of reasons, so that a client matches on the reason
and a person reads the message.
"""

import asyncio
import os
import re
import socket
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from pydantic import Field

from services.common.kernel.errors import InvalidInput, Retriable, WattvendError
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime import collector
from services.common.runtime.http import Health, cannot_listen
from services.common.runtime.settings import ServiceSettings

DOMAIN = "wattvend"
"""ErrorInfo.domain of every error of the product."""
CALLER_KEY = "wattvend-caller"
ACTOR_KEY = "wattvend-actor"
CALLER_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/-]{0,127}")
HEALTH_MIRROR_S = 0.1
GUARDED = ("/wattvend.", "/google.longrunning.")
"""How the names of the product's methods begin."""
MESSAGE_BYTES_MAX = 4 << 20
SERVERS = 128
"""So many servers share a port, each with some of the connections. grpc.aio's server takes up one
call at a time, each after a turn of a thread and one of the loop: while the loop is busy calls
would wait in line for being seen at all, some of them for many turns. The kernel deals connections
out at random, so there are more servers than connections are expected: one with eight of them is
half as fast to each. A server costs 10 KiB and a descriptor."""
ERROR_CHARACTERS_MAX = 500
"""Of an error's message: it travels twice in the trailers, of which clients take 8 KiB."""

_OTHER_CODE = grpc.StatusCode.FAILED_PRECONDITION
_CODES = {
    grpc.StatusCode.UNAUTHENTICATED: (Reason.CALLER_MISSING,),
    grpc.StatusCode.INVALID_ARGUMENT: (
        Reason.INVALID_ARGUMENT,
        Reason.REQUEST_ID_INVALID,
        Reason.AMOUNT_NOT_POSITIVE,
        Reason.AMOUNT_TOO_LARGE,
        Reason.PROFILE_UNKNOWN,
        Reason.CURRENCY_UNKNOWN,
        Reason.EFFECTIVE_TOO_EARLY,
        Reason.EFFECTIVE_IN_PAST,
        Reason.THRESHOLDS_OUT_OF_ORDER,
        Reason.REGISTER_NEGATIVE,
    ),
    grpc.StatusCode.NOT_FOUND: (
        Reason.SITE_NOT_FOUND,
        Reason.GATEWAY_NOT_FOUND,
        Reason.METER_NOT_FOUND,
        Reason.ACCOUNT_NOT_FOUND,
        Reason.TARIFF_NOT_FOUND,
        Reason.POLICY_NOT_FOUND,
        Reason.NO_CUTOFF,
        Reason.RECEIPT_NOT_FOUND,
        Reason.PAYMENT_NOT_FOUND,
        Reason.APPROVAL_NOT_FOUND,
        Reason.AUTHORITY_NOT_FOUND,
        Reason.DOCUMENT_NOT_FOUND,
        Reason.CHARGE_NOT_FOUND,
        Reason.OPERATION_NOT_FOUND,
        Reason.BATCH_NOT_FOUND,
        Reason.EXPORT_NOT_FOUND,
        Reason.CLOSING_NOT_FOUND,
    ),
    grpc.StatusCode.CANCELLED: (Reason.CANCELLED,),
    grpc.StatusCode.UNIMPLEMENTED: (Reason.OPERATION_IS_KEPT,),
    grpc.StatusCode.ALREADY_EXISTS: (
        Reason.ALREADY_EXISTS,
        Reason.REQUEST_ID_REUSED,
        Reason.SERIAL_TAKEN,
        Reason.KEY_COLLISION,
    ),
    grpc.StatusCode.PERMISSION_DENIED: (Reason.SAME_PERSON,),
    grpc.StatusCode.UNAVAILABLE: (Reason.NOT_YET_VISIBLE, Reason.UNAVAILABLE),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Reason.TOO_MANY_CALLS,),
    grpc.StatusCode.DEADLINE_EXCEEDED: (Reason.NO_ANSWER_IN_TIME,),
    grpc.StatusCode.INTERNAL: (Reason.INTERNAL,),
}
_CODE_OF = {reason: code for code, reasons in _CODES.items() for reason in reasons}


class GrpcSettings(ServiceSettings):
    """Settings of a service that serves gRPC. A subclass gives `grpc_port` its default."""

    grpc_host: str = Field("127.0.0.1", description="where gRPC listens")
    grpc_port: int = Field(..., ge=0, le=65535, description="port of gRPC; 0: any free one")
    grpc_concurrent_max: int = Field(
        1000, ge=1, le=100_000, description="calls at once; one more gets RESOURCE_EXHAUSTED"
    )
    grpc_timeout_s: int = Field(
        10, ge=1, le=600, description="deadline of a call whose client set none"
    )

    def listeners(self) -> dict[str, str]:
        """Return setting name → host: HTTP's and gRPC's."""
        return {**super().listeners(), "grpc_host": self.grpc_host}


class Context(Protocol):
    """What the guard reads of a grpc.aio.ServicerContext."""

    def invocation_metadata(self) -> Any:
        """Return the call's metadata: (key, value) pairs, or None."""
        ...

    def peer(self) -> str:
        """Return where the call came from, as gRPC writes it, e.g. `ipv4:10.0.3.7:41234`."""
        ...

    def time_remaining(self) -> float | None:
        """Return seconds until the client's deadline; None where it set none."""
        ...


@lru_cache(maxsize=4096)
def _is_caller(name: str) -> bool:
    return CALLER_PATTERN.fullmatch(name) is not None


def call_of(context: Context) -> "Call":
    """Return what a handler needs to know of its call. Raises InvalidInput(CALLER_MISSING)."""
    caller = actor = ""
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_KEY:
            caller = caller or value
        elif key == ACTOR_KEY:
            actor = actor or value
    if isinstance(caller, str) and _is_caller(caller):
        return Call(caller, actor, address_of(context.peer()), context.time_remaining())
    raise InvalidInput(
        Reason.CALLER_MISSING,
        f"metadata {CALLER_KEY} must name who calls, e.g. counter-3 "
        f"({CALLER_PATTERN.pattern}): request ids are unique to a caller",
        field=CALLER_KEY,
    )


@lru_cache(maxsize=4096)
def address_of(peer: str) -> str:
    """Return the address of a peer as gRPC writes it, without its port."""
    kind, _, place = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return unquote(place.rpartition(":")[0]).strip("[]")


def code_of(reason: Reason) -> grpc.StatusCode:
    """Return the status code that errors of a reason have."""
    return _CODE_OF.get(reason, _OTHER_CODE)


def status_of(
    reason: Reason, message: str, field: str = "", offers: Mapping[str, str] | None = None
) -> status_pb2.Status:
    """Return the google.rpc.Status of an error: code, message, ErrorInfo with field and offers."""
    message = message[:ERROR_CHARACTERS_MAX]
    info = any_pb2.Any()
    metadata = {**(offers or {}), **({"field": field} if field else {})}
    info.Pack(error_details_pb2.ErrorInfo(reason=reason.value, domain=DOMAIN, metadata=metadata))
    return status_pb2.Status(code=code_of(reason).value[0], message=message, details=[info])


@value_class
class Call:
    """What a handler knows of its call. `remaining_s`: until the client's deadline, if it set one.

    `caller` is the scope of a request_id; `actor` the person behind it, as the caller wrote it, ""
    where it said nothing; `peer` the address that the call came from, without its port.
    grpc decodes all metadata anew whenever it is asked: here that was done, once.
    """

    caller: str
    actor: str
    peer: str
    remaining_s: float | None


Handler = Callable[[Any, Call], Awaitable[Any]]


class Guard:
    """Around every unary method of the product: a caller, a deadline, errors with a reason."""

    def __init__(self, log: structlog.stdlib.BoundLogger, timeout_s: float, calls_max: int) -> None:
        self._log = log
        self._timeout_s = timeout_s
        self._calls_max = calls_max
        self._running = 0

    def running(self) -> int:
        """Return how many calls wait for their answer."""
        return self._running

    def around(self, handler: Any, method: str) -> Any:
        """Return the guarded handler of a method."""
        return grpc.unary_unary_rpc_method_handler(
            self._around(handler.unary_unary, handler.request_deserializer, method),
            None,  # decoded inside, where what fails gets a reason
            handler.response_serializer,
        )

    def _around(self, inner: Handler, decoded: Callable[[bytes], Any], method: str) -> Handler:
        async def guarded(sent: bytes, context: Any) -> Any:
            if self._running >= self._calls_max:  # of all servers: each one's own limit is not
                status = status_of(
                    Reason.TOO_MANY_CALLS,
                    f"{self._calls_max} calls are under way; repeat with the same request_id",
                )
                await context.abort_with_status(rpc_status.to_status(status))
            request = None
            self._running += 1
            try:
                call = call_of(context)
                request = _request(decoded, sent)
                if call.remaining_s is not None:
                    return await inner(request, call)
                async with asyncio.timeout(self._timeout_s):
                    return await inner(request, call)
            except InvalidInput as wrong:
                field = field_of(request, wrong.field)
                status = status_of(wrong.reason, wrong.message, field, wrong.offers)
            except Retriable as later:
                if later.told != str(later):
                    self._log.warning("a call cannot be answered", method=method, why=str(later))
                status = status_of(Reason.UNAVAILABLE, later.told)
            except TimeoutError:
                status = status_of(
                    Reason.NO_ANSWER_IN_TIME,
                    f"no answer within {self._timeout_s} s; repeat with the same request_id",
                )
            except Exception:  # noqa: BLE001 - whatever it is, the caller gets one clear error
                self._log.exception("a call failed", method=method)
                status = status_of(
                    Reason.INTERNAL,
                    "the service failed; repeat with the same request_id, "
                    "and tell the operator of the platform if it fails again",
                )
            finally:
                self._running -= 1
            await context.abort_with_status(rpc_status.to_status(status))
            raise AssertionError("abort_with_status returned")

        return guarded


def field_of(request: Any, field: str) -> str:
    """Return what a field is called in a request; as it is where the request has none like it.

    Deciders know `account_id`, requests the resource `account`, or the one they act on as `name`.
    """
    fields = () if request is None else request.DESCRIPTOR.fields_by_name
    if field not in fields and field.endswith(("_id", "legal_entity")):
        known = (field.removesuffix("_id"), "name")
        return next((name for name in known if name in fields), field)
    return field


def _request(decoded: Callable[[bytes], Any], sent: bytes) -> Any:
    try:
        return decoded(sent)
    except DecodeError as garbage:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"the request is no message of this method ({garbage}); "
            "encode it with the .proto files of this release",
        ) from garbage


class _Methods(grpc.GenericRpcHandler):
    """A server as generated code wants it, and the one handler of the real one: methods by name.

    Others than the product's (health, reflection) pass unguarded. Neither an interceptor, which
    is two more coroutines a call; nor the methods that generated code registers beside: for each
    call grpc.aio waits on all of them, one by one, which costs as much as deciding a sale.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._handlers: list[Any] = []
        self._known: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Take what generated code adds."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Register nothing: the same handlers came by name already."""

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method, made once; None where there is none."""
        method = handler_call_details.method
        if (known := self._known.get(method)) is not None:
            return known
        asked = (handler.service(handler_call_details) for handler in self._handlers)
        found = next((handler for handler in asked if handler is not None), None)
        if found is None:
            return None
        if found.unary_unary is not None and method.startswith(GUARDED):
            found = self._guard.around(found, method)
        self._known[method] = found
        return found


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(servers: Sequence[grpc.aio.Server], settings: GrpcSettings) -> int:
    """Bind all to one port; return it. Raises WrongSettings where they cannot."""
    _check_is_free(settings)
    port = settings.grpc_port
    address = _address(settings.grpc_host, port)
    try:
        credentials = _credentials(settings)
        for server in servers:
            address = _address(settings.grpc_host, port)
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
    except RuntimeError as failed:
        names = map(settings.env_name, ("grpc_host", "grpc_port", "tls_certificate", "tls_key"))
        raise WattvendError(
            f"gRPC cannot listen on {address}; correct one of {', '.join(names)}"
        ) from failed
    return port


def _credentials(settings: GrpcSettings) -> grpc.ServerCredentials | None:
    if not (settings.tls_certificate and settings.tls_key):
        return None
    pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
    return grpc.ssl_server_credentials([pair])


def _check_is_free(settings: GrpcSettings) -> None:
    """Ask a plain socket for the port: it does not share it, and says why it cannot have it."""
    family = socket.AF_INET6 if ":" in settings.grpc_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # calls that ended linger
        try:
            probe.bind((settings.grpc_host, settings.grpc_port))
        except OSError as failed:
            raise cannot_listen(
                settings, "grpc", settings.grpc_host, settings.grpc_port, failed
            ) from failed


@contextmanager
def yielding_threads() -> Iterator[None]:
    """Let threads that begin inside run when the caller's thread pauses, where the kernel can.

    gRPC's own threads wake some six times a call, and each time they took the processor from the
    loop that answers it. As SCHED_BATCH they wait until it has nothing to do, or its slice is over;
    then they find several calls at once.
    """
    if not hasattr(os, "SCHED_BATCH"):
        yield
        return
    before, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, before, parameter)


async def _mirror(health: Health, servicer: HealthServicer, names: list[str]) -> None:
    """Keep the health service saying what /health/ready says."""
    shown: int | None = None
    while True:
        status = (
            health_pb2.HealthCheckResponse.NOT_SERVING
            if health.missing
            else health_pb2.HealthCheckResponse.SERVING
        )
        if status != shown:
            for name in ("", *names):
                await servicer.set(name, status)
            shown = status
        await asyncio.sleep(HEALTH_MIRROR_S)


@asynccontextmanager
async def serving(
    settings: GrpcSettings,
    log: structlog.stdlib.BoundLogger,
    health: Health,
    register: Callable[[grpc.aio.Server], None],
    service_names: Sequence[str],
) -> AsyncIterator[int]:
    """Serve gRPC while the context lasts; yields the port.

    `register` adds the servicers; `service_names` are their full names, for health and reflection.
    On leaving, new calls are refused and running ones get half of `stop_timeout_s` to end.
    Raises WrongSettings where it cannot listen.
    """
    options = [("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
    with yielding_threads():
        servers = [grpc.aio.server(options=options) for _ in range(SERVERS)]
    guard = Guard(log, settings.grpc_timeout_s, settings.grpc_concurrent_max)
    methods: Any = _Methods(guard)
    register(methods)
    servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, methods)
    names = [*service_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], methods)
    port = _listen(servers, settings)
    for server in servers:
        server.add_generic_rpc_handlers((methods,))
        await server.start()
    beside = (
        asyncio.create_task(_mirror(health, servicer, names), name="grpc-health"),
        asyncio.create_task(collector.collect_at_leisure(guard.running), name="collector"),
    )
    log.info("grpc listens", address=_address(settings.grpc_host, port), tls=settings.has_tls)
    try:
        with collector.spared():
            yield port
    finally:
        for task in beside:
            task.cancel()
        await servicer.enter_graceful_shutdown()
        stop_s = settings.stop_timeout_s / 2
        await asyncio.gather(*(server.stop(stop_s) for server in servers))
