"""wattvend.reporting.v1.PreviewService: who is affected by a version. No rules."""

# ruff: noqa: N802 - names are those of the generated servicer

import asyncio
from typing import Any

from services.common.kernel.clock import Clock
from services.reporting.adapters import adjustments, policy_previews
from services.reporting.adapters.queries import Queries
from wattvend.reporting.v1 import previews_pb2 as pb
from wattvend.reporting.v1 import previews_pb2_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PreviewService"].full_name
AT_ONCE_MAX = 1
"""Adjustment runs at once, the others wait: each has a reader's connection for long."""


class PreviewServicer(previews_pb2_grpc.PreviewServiceServicer):
    """The handlers. Errors are raised; the server's guard answers with them."""

    def __init__(self, queries: Queries, clock: Clock) -> None:
        self._queries = queries
        self._clock = clock
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)

    async def PreviewAdjustment(
        self, request: pb.PreviewAdjustmentRequest, _: Any
    ) -> pb.AdjustmentPreview:
        """Return what an adjustment run comes to."""
        async with self._at_once:
            return await adjustments.adjustment(self._queries, request)

    async def PreviewPolicy(self, request: pb.PreviewPolicyRequest, _: Any) -> pb.PolicyPreview:
        """Return who would be in another state at once."""
        return await policy_previews.policy(self._queries, self._clock, request)
