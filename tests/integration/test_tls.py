"""gRPC beyond this machine is TLS, and the operator's command line speaks it.

Method: a server of the product's own, on loopback with a certificate; calls with the authority
that it is from, without one, and with another's.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
import trustme

from services.common.runtime import grpc as product_grpc
from services.common.runtime.http import Health
from services.vending.config import VendingSettings
from tools.client import Refused, connect
from wattvend.vending.v1 import vending_pb2 as v

LOG = structlog.stdlib.get_logger()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def settings(authority: trustme.CA, tmp_path: Path) -> VendingSettings:
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    return VendingSettings(
        grpc_port=0, tls_certificate=tmp_path / "tls.crt", tls_key=tmp_path / "tls.key"
    )


@pytest.fixture
async def address(settings: VendingSettings) -> AsyncIterator[str]:
    """Serve no method at all: whoever is understood is told UNIMPLEMENTED."""
    serving = product_grpc.serving(settings, LOG, Health(), lambda _: None, [])
    async with serving as port:
        yield f"127.0.0.1:{port}"


async def code_of_a_call(address: str, authority: bytes | None) -> str:
    async with connect(address, address, "test", authority) as clients:
        with pytest.raises(Refused) as refused:
            await clients.vending("GetAccount", v.GetAccountRequest(name="accounts/A1"))
    return refused.value.code


async def test_a_caller_who_trusts_its_authority_is_understood_and_nobody_else(
    address: str, authority: trustme.CA
) -> None:
    assert await code_of_a_call(address, authority.cert_pem.bytes()) == "UNIMPLEMENTED"
    assert await code_of_a_call(address, None) == "UNAVAILABLE"
    assert await code_of_a_call(address, trustme.CA().cert_pem.bytes()) == "UNAVAILABLE"


async def test_the_command_line_takes_the_authority_as_a_file(
    address: str, authority: trustme.CA, tmp_path: Path
) -> None:
    path = tmp_path / "ca.crt"
    authority.cert_pem.write_to_path(path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.cli", "--json", "--vending", address, "--ca", path),
        *("account", "show", "A1"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert json.loads(said)["error"] == "UNIMPLEMENTED"
