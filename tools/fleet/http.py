"""The control API: what the fleet truly is, and switches to make it misbehave. Loopback only."""

from collections.abc import Awaitable, Callable
from typing import Literal, Self, TypeVar

from aiohttp import web
from pydantic import Field, ValidationError, model_validator

from tools.fleet.config import REGISTER_MAX_LSB, Strict, explain
from tools.fleet.errors import ListenError, RefusedError
from tools.fleet.fleet import Fleet, Gateway
from tools.fleet.meter import Fault, FaultKind, Meter, Presence
from tools.fleet.modbus import LOOPBACK

SHUTDOWN_TIMEOUT_S = 0.5
NANOJOULE_PER_MICRO_WH = 3_600_000


class LoadRequest(Strict):
    """POST /load."""

    on: bool


class PowerRequest(Strict):
    """POST /meters/{id}/power; null gives the configured load back."""

    power_w: int | None = Field(ge=0, le=10_000_000_000)


class OfflineRequest(Strict):
    """POST /meters/{id}/offline: now, or with the first reading of so much or more."""

    now: bool = False
    after_register_lsb: int | None = Field(None, ge=0, le=REGISTER_MAX_LSB)
    mode: Literal[Presence.SILENT, Presence.MISSING] = Presence.SILENT

    @model_validator(mode="after")
    def _one_moment(self) -> Self:
        if self.now == (self.after_register_lsb is not None):
            raise ValueError('give either {"now": true} or {"after_register_lsb": ...}')
        return self


class FaultRequest(Strict):
    """POST /meters/{id}/fault."""

    kind: FaultKind
    answers: int = Field(1, ge=1, le=10_000)
    register_lsb: int | None = Field(None, ge=0, le=0xFFFF_FFFF)
    serial: str | None = Field(None, pattern=r"^[0-9A-Za-z]{1,20}$")

    @model_validator(mode="after")
    def _with_what_it_tells(self) -> Self:
        if (self.kind is FaultKind.ABSURD_REGISTER) != (self.register_lsb is not None):
            raise ValueError("register_lsb belongs to absurd_register, which needs it")
        if (self.kind is FaultKind.WRONG_SERIAL) != (self.serial is not None):
            raise ValueError("serial belongs to wrong_serial, which needs it")
        return self


class ClockRequest(Strict):
    """POST /meters/{id}/clock: so far ahead of the truth; below 0: behind."""

    ahead_ms: int = Field(ge=-(10**11), le=10**11)


class StrangerRequest(Strict):
    """POST /gateways/{id}/stranger."""

    serial: str = Field(pattern=r"^[0-9A-Za-z]{1,20}$")


Body = TypeVar("Body", bound=Strict)


class Api:
    """The handlers, one a route. Wrong requests get 400, unknown names 404, {"error": why}."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health/live", self.live),
            web.get("/health/ready", self.ready),
            web.get("/meters", self.meters),
            web.get("/meters/{id}", self.meter),
            web.post("/meters/{id}/offline", self.meter_offline),
            web.post("/meters/{id}/online", self.meter_online),
            web.post("/meters/{id}/fault", self.fault),
            web.post("/meters/{id}/power", self.power),
            web.post("/meters/{id}/clock", self.clock),
            web.get("/gateways", self.gateways),
            web.post("/gateways/{id}/offline", self.gateway_offline),
            web.post("/gateways/{id}/online", self.gateway_online),
            web.post("/gateways/{id}/stranger", self.stranger),
            web.post("/load", self.load),
        ]

    async def live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(self, _: web.Request) -> web.Response:
        missing = dict(self._fleet.missing)
        return web.json_response(
            {"ready": not missing, "missing": missing}, status=503 if missing else 200
        )

    async def meters(self, _: web.Request) -> web.Response:
        # One moment for all of them, so that their sums mean something.
        now_ms = self._fleet.now_ms()
        shown = [describe_meter(meter, now_ms) for meter in self._fleet.meters.values()]
        return web.json_response({"at_ms": now_ms, "load_on": self._fleet.load_on, "meters": shown})

    async def meter(self, request: web.Request) -> web.Response:
        return self._answer(self._meter(request))

    async def meter_offline(self, request: web.Request) -> web.Response:
        meter, body = self._meter(request), await read_body(request, OfflineRequest)
        meter.go_offline(body.mode, body.after_register_lsb)
        return self._answer(meter)

    async def meter_online(self, request: web.Request) -> web.Response:
        meter = self._meter(request)
        meter.go_online()
        return self._answer(meter)

    async def fault(self, request: web.Request) -> web.Response:
        meter, body = self._meter(request), await read_body(request, FaultRequest)
        meter.set_fault(Fault(body.kind, body.answers, body.register_lsb or 0, body.serial or ""))
        return self._answer(meter)

    async def power(self, request: web.Request) -> web.Response:
        meter, body = self._meter(request), await read_body(request, PowerRequest)
        meter.set_power(body.power_w, self._fleet.now_ms())
        return self._answer(meter)

    async def clock(self, request: web.Request) -> web.Response:
        meter, body = self._meter(request), await read_body(request, ClockRequest)
        meter.clock_ahead_ms = body.ahead_ms
        return self._answer(meter)

    async def gateways(self, _: web.Request) -> web.Response:
        shown = [describe_gateway(gateway) for gateway in self._fleet.gateways.values()]
        return web.json_response({"gateways": shown})

    async def gateway_offline(self, request: web.Request) -> web.Response:
        gateway = self._gateway(request)
        await gateway.close()
        return web.json_response(describe_gateway(gateway))

    async def gateway_online(self, request: web.Request) -> web.Response:
        gateway = self._gateway(request)
        await gateway.open()
        return web.json_response(describe_gateway(gateway))

    async def stranger(self, request: web.Request) -> web.Response:
        gateway, body = self._gateway(request), await read_body(request, StrangerRequest)
        return self._answer(self._fleet.add_stranger(gateway.config.id, body.serial))

    async def load(self, request: web.Request) -> web.Response:
        body = await read_body(request, LoadRequest)
        at_ms = self._fleet.switch_load(on=body.on)
        return web.json_response({"at_ms": at_ms, "load_on": body.on})

    def _answer(self, meter: Meter) -> web.Response:
        return web.json_response(describe_meter(meter, self._fleet.now_ms()))

    def _meter(self, request: web.Request) -> Meter:
        meter = self._fleet.meters.get(request.match_info["id"])
        if meter is None:
            raise UnknownError(f"there is no meter {request.match_info['id']}; see GET /meters")
        return meter

    def _gateway(self, request: web.Request) -> Gateway:
        gateway = self._fleet.gateways.get(request.match_info["id"])
        if gateway is None:
            raise UnknownError(f"there is no gateway {request.match_info['id']}; see GET /gateways")
        return gateway


class UnknownError(RefusedError):
    """Nothing has the name in the path."""


def describe_meter(meter: Meter, now_ms: int) -> dict[str, object]:
    """Return the truth about a meter. Energy is what flowed since birth, primary, exact."""
    snapshot = meter.snapshot(now_ms)
    config = meter.config
    after = meter.offline_after
    return {
        "id": config.id,
        "name": config.name,
        "serial": config.serial,
        "gateway": config.gateway,
        "unit": config.unit,
        "profile": config.profile,
        "ct": config.ct,
        "pt": config.pt,
        "register_lsb": snapshot.register_lsb,
        "register_birth_lsb": config.register_lsb,
        "energy_nanojoule": meter.energy_nanojoule,
        "energy_micro_wh": meter.energy_nanojoule // NANOJOULE_PER_MICRO_WH,
        "power_w": meter.power_uw(now_ms) // 1_000_000,
        "relay": meter.position,
        "forced": meter.forced,
        "clock_ahead_ms": meter.clock_ahead_ms,
        "transitions": [
            {"position": one.position, "at_ms": one.at_ms, "by": one.by}
            for one in meter.transitions
        ],
        "commands_accepted": meter.commands_accepted,
        "online": meter.presence is Presence.ONLINE,
        "presence": meter.presence,
        "offline_after_register_lsb": after[0] if after else None,
        "reads_served": meter.reads_served,
        "last_served_register_lsb": meter.last_served_register_lsb,
        "last_served_at_ms": meter.last_served_at_ms,
    }


def describe_gateway(gateway: Gateway) -> dict[str, object]:
    config = gateway.config
    return {
        "id": config.id,
        "protocol": config.protocol,
        "address": gateway.address,
        "online": gateway.is_online,
        **gateway.state(),
    }


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """Return the request's JSON body, validated. Raises RefusedError."""
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError as wrong:
        raise RefusedError(f"the body of {request.path} is wrong:\n{explain(wrong)}") from wrong


@web.middleware
async def explain_refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except UnknownError as unknown:
        return web.json_response({"error": str(unknown)}, status=404)
    except RefusedError as refused:
        return web.json_response({"error": str(refused)}, status=400)
    except ListenError as taken:
        return web.json_response({"error": str(taken)}, status=409)


def make_app(fleet: Fleet) -> web.Application:
    app = web.Application(middlewares=[explain_refusals])
    app.add_routes(Api(fleet).routes())
    return app


async def serve(fleet: Fleet, port: int) -> web.AppRunner:
    """Listen on loopback; `cleanup()` of what is returned stops. Raises ListenError."""
    runner = web.AppRunner(make_app(fleet), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, port).start()
    except OSError as taken:
        await runner.cleanup()
        raise ListenError(
            f"the fleet's control API cannot listen on {LOOPBACK}:{port} ({taken.strerror}); "
            "free the port or set WATTVEND_FLEET_HTTP_PORT"
        ) from taken
    return runner
