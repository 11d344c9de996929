"""`python -m tools.bench.empty PORT`: a gRPC server whose one method does nothing.

What vending's calls are held against: the same library with the same options, the same bytes from
the same clients; no interceptor, no message, no work.
"""

import asyncio
import sys

import grpc
import grpc.aio

from services.common.runtime.grpc import MESSAGE_BYTES_MAX
from tools.stack.ports import LOOPBACK

SERVICE, NAME = "bench.Empty", "Call"
METHOD = f"/{SERVICE}/{NAME}"
CONCURRENT_MAX = 1000


async def _call(_request: bytes, _context: object) -> bytes:
    return b""


async def serve(port: int) -> None:
    """Serve until the process ends."""
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ],
        maximum_concurrent_rpcs=CONCURRENT_MAX,
    )
    handlers = {NAME: grpc.unary_unary_rpc_method_handler(_call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"{LOOPBACK}:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
