"""Health and metrics over HTTP: /health/live, /health/ready, /metrics."""

import errno
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from services.common.runtime.settings import ServiceSettings, WrongSettings


class Health:
    """Why a service is not ready. Ready means: nothing is missing."""

    def __init__(self, *missing: str) -> None:
        self._missing = dict.fromkeys(missing, "starting")

    def ready(self, part: str) -> None:
        """Say that `part` works."""
        self._missing.pop(part, None)

    def not_ready(self, part: str, why: str) -> None:
        """Say that `part` does not work, and why."""
        self._missing[part] = why

    @property
    def missing(self) -> dict[str, str]:
        """Part → why it is not ready."""
        return dict(self._missing)


async def serve(
    settings: ServiceSettings, health: Health, registry: CollectorRegistry
) -> Callable[[], object]:
    """Listen and return what stops it. Raises WrongSettings where it cannot."""

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(_: web.Request) -> web.Response:
        missing = health.missing
        return web.json_response(
            {"ready": not missing, "missing": missing}, status=503 if missing else 200
        )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/health/live", live),
            web.get("/health/ready", ready),
            web.get("/metrics", metrics),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = settings.http_host, settings.http_port
    try:
        await web.TCPSite(runner, host, port, ssl_context=settings.server_tls()).start()
    except OSError as failed:
        await runner.cleanup()
        raise cannot_listen(settings, "http", host, port, failed) from failed
    return runner.cleanup


def cannot_listen(
    settings: ServiceSettings, what: str, host: str, port: int, failed: OSError
) -> WrongSettings:
    """Return why `what` (http or grpc) does not listen, with the settings to change."""
    names = f"{settings.env_name(f'{what}_host')} or {settings.env_name(f'{what}_port')}"
    if failed.errno == errno.EADDRINUSE:
        names = settings.env_name(f"{what}_port")
        why, do = "another process listens there", "stop it, or choose another port in"
    else:
        why, do = failed.strerror or str(failed), "correct"
    return WrongSettings(f"cannot listen on {host}:{port}: {why}; {do} {names}")
