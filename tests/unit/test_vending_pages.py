"""Goal: a page token goes on with the list that gave it out, and with no other.

Method: every method of vending that gives out pages, found in its descriptors; what it says its
list is, is listened to, and a token of that list is sent with other fields.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default
from prometheus_client import CollectorRegistry

from services.common.kernel import paging
from services.common.kernel.errors import InvalidInput
from services.common.runtime.grpc import Call
from services.vending.adapters import api
from services.vending.adapters.api.desk import Desk
from services.vending.metrics import Metrics
from tests.unit import vending_world

CALL = Call("desk", "u-1", "10.0.0.9", 9.0)
NOT_OF_THE_LIST = {"page_size", "page_token", "return_partial_success"}
CASES: Mapping[str, tuple[dict[str, str], ...]] = {
    "ListReceipts": (
        {"parent": "accounts/A1"},
        {"parent": "accounts/A2"},
        {"parent": "accounts/A1", "filter": "type = sale"},
    ),
    "ListApprovals": ({}, {"filter": "legal_entity = legalEntities/LE1"}),
    "ListPayments": (
        {"parent": "sellers/-"},
        {"parent": "sellers/kiosk"},
        {"parent": "sellers/-", "filter": "status = sold"},
    ),
    "ListBatches": ({}, {"filter": "kind = price"}),
    "ListBatchResults": (
        {"parent": "batches/B1"},
        {"parent": "batches/B2"},
        {"parent": "batches/B1", "filter": "outcome = done"},
    ),
    "ListClosings": (
        {"parent": "accounts/-"},
        {"parent": "accounts/A1"},
        {"parent": "accounts/-", "filter": "running = true"},
    ),
    "ListOpenings": ({},),
    "ListOperations": (
        {"name": "operations"},
        {"name": "operations/batches"},
        {"name": "operations", "filter": "done = true"},
    ),
    "ListDocuments": ({}, {"filter": "kind = tariff"}),
    "ListVersions": ({"parent": "tariffs/T1"}, {"parent": "policies/T1"}),
}
"""Method → what it is asked, the first time and otherwise: each field of its request differs."""


def lists() -> Iterator[tuple[api.Service, MethodDescriptor]]:
    for service in api.SERVICES:
        for method in Default().FindServiceByName(service.name).methods:
            if "page_token" in method.input_type.fields_by_name:
                yield service, method


LISTS = {method.name: (service, method) for service, method in lists()}


def test_each_list_is_asked_with_each_of_its_fields_otherwise() -> None:
    assert LISTS.keys() == CASES.keys()
    for name, (_, method) in LISTS.items():
        first, *others = CASES[name]
        differing = {
            field for other in others for field in other if other[field] != first.get(field)
        }
        assert differing == {*method.input_type.fields_by_name} - NOT_OF_THE_LIST, name


@pytest.mark.parametrize("name", CASES)
async def test_a_token_of_another_list_or_filter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    service, method = LISTS[name]
    heard: list[tuple[Any, ...]] = []

    def listening(listed: Any, token: str, kinds: Any) -> paging.Cursor | None:
        heard.append((listed, kinds))
        return paging.cursor_of(listed, token, kinds)

    handlers = service.handlers
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk = Desk(world.office, world.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
        ask = getattr(handlers(desk), name)
        monkeypatch.setitem(ask.__func__.__globals__, "cursor_of", listening)

        async def refused(asked: Mapping[str, str], token: str) -> str:
            """Return which field is at fault; "" where none is, or there is no such thing."""
            made = message_factory.GetMessageClass(method.input_type)
            try:
                await ask(made(**asked, page_token=token), CALL)
            except InvalidInput as wrong:
                return wrong.field
            return ""

        first, *others = CASES[name]
        await refused(first, "")
        ((listed, kinds),) = heard
        token = paging.token_of(listed, tuple(kind() for kind in kinds))
        assert await refused(first, token) != "page_token"
        for other in others:
            assert await refused(other, token) == "page_token"
        of_another = paging.token_of(("another list",), tuple(kind() for kind in kinds))
        assert await refused(first, of_another) == "page_token"
