"""Resource names: what is built is read back, and what cannot be read says what to write."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from google.api import resource_pb2
from google.protobuf.descriptor import FileDescriptor
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import wattvend.reporting.v1
import wattvend.vending.v1
from services.common.kernel import names
from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import ID_PATTERN
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters.api import VendingApi
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.names import of_stream
from services.vending.metrics import Metrics
from tests.unit import vending_world
from wattvend.vending.v1 import vending_pb2 as pb

TEXTS = st.text(
    st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1, max_size=200
)
UUID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


@given(st.from_regex(ID_PATTERN, fullmatch=True))
def test_an_id_is_read_out_of_its_name(id_: str) -> None:
    for kind in (names.ACCOUNT, names.METER, names.BATCH):
        assert kind.id("name", kind.name(id_)) == id_
    assert names.ACCOUNT.id("name", names.ACCOUNT.name(f"house:{id_}")) == f"house:{id_}"


@given(TEXTS, TEXTS)
def test_a_free_text_of_any_script_is_read_out_of_its_name(one: str, other: str) -> None:
    assert names.AUTHORITY.id("name", names.AUTHORITY.name(one)) == one
    assert names.PAYMENT.ids("name", names.PAYMENT.name(one, other)) == (one, other)


@pytest.mark.parametrize("unprintable", ["\0", "%00", "\x1b[2K", "%1B", "\n", "%E2%80%AE"])
def test_no_name_has_a_character_that_cannot_be_printed(unprintable: str) -> None:
    """PostgreSQL refuses a NUL as if it were away, and a terminal obeys an escape."""
    with pytest.raises(InvalidInput, match="printable"):
        names.LEGAL_ENTITY.id("filter", f"legalEntities/a{unprintable}")
    with pytest.raises(InvalidInput, match="printable"):
        names.PAYMENT.ids("name", f"sellers/till/payments/{unprintable}")


def test_names_are_legible() -> None:
    assert names.ACCOUNT.name("A1") == "accounts/A1"
    assert names.RECEIPT.name(UUID) == f"receipts/{UUID}"
    assert names.LEGAL_ENTITY.name("万达 A/S") == "legalEntities/万达 A%2FS"
    assert names.AUTHORITY.name("100% Mall") == "legalEntities/100%25 Mall/authority"
    assert names.AUTHORITY.id("name", "legalEntities/%E4%B8%87/authority") == "万"
    assert of_stream("account-shop-1") == "accounts/shop-1"
    assert of_stream("authority-A/S") == "legalEntities/A%2FS/authority"
    assert names.TARIFF.name_if(None) == ""
    assert names.TARIFF.id_if("tariff", "") == ""


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (names.ACCOUNT, "", "account: a name is missing; write accounts/{account}"),
        (names.ACCOUNT, "A1", "'A1' is no name of this kind; write accounts/{account}"),
        (names.ACCOUNT, "meters/A1", "write accounts/{account}"),
        (names.ACCOUNT, "accounts/", "beginning with a letter or digit"),
        (names.ACCOUNT, "accounts/A 1", "1 to 63 letters"),
        (names.ACCOUNT, "accounts/A1/", "write accounts/{account}"),
        (names.ACCOUNT, "accounts/A1\n", "write accounts/{account}"),
        (names.RECEIPT, "receipts/1", "the UUID as it was told"),
        (names.AUTHORITY, "legalEntities/A/S/authority", '"/" is written %2F'),
        (names.AUTHORITY, "legalEntities/100%/authority", '"%" is written %25'),
        (names.AUTHORITY, "legalEntities/%FF/authority", "legalEntities/{legal_entity}"),
        (names.PAYMENT, "sellers/s/payments/", "for {seller} and {payment}"),
    ],
)
def test_a_name_that_cannot_be_read_says_what_to_write(
    kind: names.Pattern, name: str, says: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        kind.ids("account", name)
    assert says in refused.value.message
    assert refused.value.field == "account"


def files_of_ours() -> list[FileDescriptor]:
    return [
        importlib.import_module(module.name).DESCRIPTOR
        for package in (wattvend.vending.v1, wattvend.reporting.v1)
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        if module.name.endswith("_pb2")
    ]


def test_the_names_that_protos_tell_machines_are_those_that_are_read() -> None:
    declared: Any = resource_pb2.resource
    defined: Any = resource_pb2.resource_definition
    told: dict[str, str] = {}
    for file in files_of_ours():
        resources = list(file.GetOptions().Extensions[defined])
        resources += [
            message.GetOptions().Extensions[declared]
            for message in file.message_types_by_name.values()
        ]
        told |= {each.type: each.pattern[0] for each in resources if each.type}
    read = {each.pattern for each in vars(names).values() if isinstance(each, names.Pattern)}
    assert set(told.values()) == read


async def test_what_has_a_name_can_be_looked_at(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        desk = Desk(opened.office, opened.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
        api, call = VendingApi(desk), Call("till", "", "10.0.3.7", None)
        for ask, kind, name, reason in (
            (api.GetSite, pb.GetSiteRequest, "sites/S1", Reason.SITE_NOT_FOUND),
            (api.GetGateway, pb.GetGatewayRequest, "gateways/G1", Reason.GATEWAY_NOT_FOUND),
            (api.GetMeter, pb.GetMeterRequest, "meters/M1", Reason.METER_NOT_FOUND),
            (api.GetTariff, pb.GetTariffRequest, "tariffs/T1", Reason.TARIFF_NOT_FOUND),
            (api.GetPolicy, pb.GetPolicyRequest, "policies/P1", Reason.POLICY_NOT_FOUND),
            (api.GetAccount, pb.GetAccountRequest, "accounts/A1", Reason.ACCOUNT_NOT_FOUND),
        ):
            asked: Any = ask
            assert (await asked(kind(name=name), call)).name == name
            with pytest.raises(InvalidInput) as refused:
                await asked(kind(name=f"{name}-other"), call)
            assert refused.value.reason is reason


def test_what_is_asked_for_a_thing_says_to_machines_which_kind_it_is() -> None:
    refers: Any = resource_pb2.resource_reference
    silent = [
        f"{method.input_type.name}.{field.name}"
        for file in files_of_ours()
        for service in file.services_by_name.values()
        for method in service.methods
        for field in method.input_type.fields
        if field.name in ("name", "parent") and not field.GetOptions().Extensions[refers].type
    ]
    assert silent == []
