"""The channel to reporting's gRPC, and what vending asks over it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from services.common.kernel.values import value_class
from services.common.runtime.settings import WrongSettings
from services.vending.adapters.exports import ReportingExports
from services.vending.adapters.selection import ReportingSelection


@value_class
class Reporting:
    """Who finds the targets of filters, and who writes exports."""

    selection: ReportingSelection
    exports: ReportingExports


def _channel(address: str, authority: Path | None) -> grpc.aio.Channel:
    if authority is None:
        return grpc.aio.insecure_channel(address)
    try:
        credentials = grpc.ssl_channel_credentials(authority.read_bytes())
    except OSError as odd:
        raise WrongSettings(
            f"WATTVEND_VENDING_REPORTING_CA={authority} cannot be read ({odd}): name the PEM file "
            "of the authority that reporting's certificate is from"
        ) from odd
    return grpc.aio.secure_channel(address, credentials)


@asynccontextmanager
async def opened(address: str, authority: Path | None) -> AsyncIterator[Reporting]:
    """Open a channel to reporting; with TLS where a certificate authority (PEM) is given."""
    async with _channel(address, authority) as channel:
        yield Reporting(ReportingSelection(channel, address), ReportingExports(channel, address))
