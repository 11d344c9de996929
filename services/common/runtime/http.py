"""Health and metrics over HTTP: /health/live, /health/ready, /metrics."""

import ssl
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from services.common.runtime.settings import ServiceSettings


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
    """Listen and return what stops it. Raises OSError where the port is taken."""

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
    context = None
    if settings.has_tls and settings.tls_certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    site = web.TCPSite(runner, settings.http_host, settings.http_port, ssl_context=context)
    await site.start()
    return runner.cleanup
