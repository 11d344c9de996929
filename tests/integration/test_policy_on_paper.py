"""Goal: a policy on paper applies from its instant on, though vending is killed while it waits.

Method: the real service beside a real Kafka, asked over gRPC by two persons; what metering and the
registry are told is read from the topics.
"""

# ruff: noqa: F811 - fixtures of another module

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from services.common.kernel import names
from tests.integration.test_vending import (  # noqa: F401 - fixtures
    DEADLINE_S,
    Vending,
    _topics,
    call,
    eventually,
    records_of,
    refusal,
    site_with_account,
    stub_of,
    vending,
)
from wattvend.vending.v1 import documents_pb2 as d
from wattvend.vending.v1 import documents_pb2_grpc
from wattvend.vending.v1 import vending_pb2 as pb

pytestmark = pytest.mark.stack

ANOTHER = (("wattvend-caller", "desk-2"), ("wattvend-actor", "u-82"))
WAITS_MS = 4_000
ALARM_1_MINOR = 4_321


@asynccontextmanager
async def documents_of(vending: Vending) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel:
        yield documents_pb2_grpc.DocumentServiceStub(channel)


async def thresholds_told(vending: Vending) -> list[int]:
    """Return the first threshold of each policy-fact on the shards, in order, each once."""
    told = [
        value["alarm_1_nano"]
        for record, envelope, value in await records_of(vending, "shard-log")
        if envelope.schema.startswith("policy-fact") and record.partition == 0
    ]
    return list(dict.fromkeys(told))


async def test_a_policy_on_paper_applies_from_its_instant_on_though_vending_was_killed(
    vending: Vending,
) -> None:
    policy = names.POLICY.name(vending.id("P"))
    at_ms = int(time.time() * 1000) + WAITS_MS
    said = pb.PublishPolicyRequest(
        name=policy,
        currency="CNY",
        alarm_1_minor=ALARM_1_MINOR,
        alarm_2_minor=500,
        restore_minor=100,
        legal_entity="legalEntities/LE1",
        effective_at_ms=at_ms,
    )
    async with stub_of(vending) as stub, documents_of(vending) as documents:
        await site_with_account(stub, vending)
        rules = pb.PublishAuthorityRequest(
            name="legalEntities/LE1/authority", currency="CNY", rules="{}"
        )
        await call(stub.PublishAuthority, rules)
        asked = d.CreateDocumentRequest(document=d.Document(policy=said))
        drafted = await call(documents.CreateDocument, asked)
        assert (drafted.state, drafted.base_version) == ("draft", 1)
        submit = d.SubmitDocumentRequest(name=drafted.name)
        submitted = await call(documents.SubmitDocument, submit)
        assert submitted.state == "submitted"
        approve = pb.ApproveRequest(name=submitted.approval, reason="seen")
        _, reason, _ = await refusal(call(stub.Approve, approve))
        assert reason == "SAME_PERSON"
        approved = await stub.Approve(approve, metadata=ANOTHER, timeout=DEADLINE_S)
        assert approved.status == "executed"
        past = pb.PublishPolicyRequest(request_id="", **fields_of(said, effective_at_ms=1))
        _, reason, _ = await refusal(call(stub.PublishPolicy, past))
        assert reason == "EFFECTIVE_IN_PAST"
        scheduled = await call(documents.GetDocument, d.GetDocumentRequest(name=drafted.name))
        assert (scheduled.state, scheduled.begins_at_ms) == ("scheduled", at_ms)
    service = vending.service
    assert service is not None
    service.kill9()
    assert ALARM_1_MINOR * 10**7 not in await thresholds_told(vending)
    vending.start()

    async def is_told() -> bool:
        return ALARM_1_MINOR * 10**7 in await thresholds_told(vending)

    await eventually(is_told)
    assert time.time() * 1000 >= at_ms
    assert await thresholds_told(vending) == [1_000 * 10**7, ALARM_1_MINOR * 10**7]
    async with documents_of(vending) as documents:
        versions = await call(documents.ListVersions, d.ListVersionsRequest(parent=policy))
        assert [each.state for each in versions.versions] == ["superseded", "in-force"]
        in_force = d.ListDocumentsRequest(filter=f"state = in-force AND policy = {policy}")
        (document,) = (await call(documents.ListDocuments, in_force)).documents
        assert (document.name, document.published_version) == (drafted.name, 2)
        assert document.decided_by == "desk-2 u-82"


def fields_of(message: Any, **changed: Any) -> dict[str, Any]:
    said = {field.name: value for field, value in message.ListFields()}
    said.pop("request_id", None)
    return said | changed
