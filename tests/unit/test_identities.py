"""Goal: every fact names what it is about as the architecture page says, and never a person.

Method: read the schemas as data. An identity that a released schema lacks cannot be added without
pain, and a person's name that stands in an event stands there for good; so both are judged here.
"""

import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from google.api import resource_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

import wattvend.reporting.v1
import wattvend.vending.v1
from services.common.kernel.errors import InvalidInput
from services.vending.domain import checks

ROOT = Path(__file__).parents[2]
SCHEMAS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "schemas" / "avro").glob("*.avsc"))
}
FIELDS = {
    subject: {field["name"] for field in schema["fields"]} for subject, schema in SCHEMAS.items()
}
EVENTS = {subject for subject, names in FIELDS.items() if "fingerprint" in names}
FACTS = {subject for subject in FIELDS if subject.endswith("-fact")}

CAUSE = {"account_sequence", "account_revision", "book_epoch", "policy_id", "policy_version"}
CAUSE |= {"tariff_id", "tariff_version", "charge_epoch", "charge_sequence"}
CAUSE |= {"from_reading_id", "to_reading_id", "reading_received_at_ms"}

IDENTITIES: dict[str, dict[str, set[str]]] = {
    "reading": {
        "reading-frame": {"reading_ids", "serials", "device_times_ms", "registers_milli"},
        "charge-frame": {"from_reading_ids", "to_reading_ids"},
    },
    "meter epoch": {
        "reading-frame": {"epochs"},
        "charge-frame": {"epochs"},
        "meter-fact": {"epoch", "previous_epoch"},
        "meter-assigned": {"epoch"},
        "account-meter-joined": {"epoch"},
        "account-meter-left": {"epoch"},
        "relay-state": {"epoch"},
    },
    "charge": {"charge-frame": {"meter_keys", "epochs", "sequences"}},
    "both readings of a charge": {
        "charge-frame": {
            f"{end}_{what}"
            for end in ("from", "to")
            for what in ("times_ms", "registers_milli", "qualities")
        }
        | {"ratios"}
    },
    "versions and totals of a charge": {
        "charge-frame": {
            "tariff_names",
            "tariff_versions",
            "policy_names",
            "policy_versions",
            "prices_micro",
            "meter_energy_totals_milli",
            "account_charged_totals_nano",
            "account_credited_totals_nano",
        }
    },
    "account sequence": {
        subject: {"account_sequence"}
        for subject in (
            "balance",
            "alarm",
            "echo",
            "account-closed",
            "account-close-refused",
            "account-settled",
            "closing-told",
            "meters-closed",
        )
    }
    | {"charge-frame": {"account_sequences"}},
    "intent version": {
        "relay-intent": {"epoch", "version_offset"},
        "alarm": {"intent_epoch", "intent_offset"},
        "command-outcome": {"intent_epoch", "intent_offset"},
        "device-request": {"intent_epoch", "intent_offset"},
    },
    "book version": {subject: {"book_epoch", "revision"} for subject in FACTS}
    | {
        "ledger-event": {"book_epoch", "revision", "position", "event_id"},
        "ledger-checkpoint": {"book_epoch", "position", "root"},
        "balance": {"book_epoch", "account_revision"},
        "echo": {"book_epoch", "account_revision"},
        "charge-frame": {"book_epochs", "account_revisions"},
    },
    "request": {subject: {"caller", "request_id"} for subject in EVENTS | {"ledger-event"}},
    "cause of a decision": {
        "alarm": CAUSE,
        "notice": CAUSE,
        "relay-intent": CAUSE | {"cause", "cause_meter_id"},
    },
    "notice": {
        "notice": {"notice_id"},
        **{
            subject: {"notice_id", "notice_outcome"}
            for subject in ("alarm", "relay-intent", "account-fact")
        },
    },
    "currency, commodity and legal entity": {
        subject: {"currency", "commodity", "legal_entity"}
        for subject in (
            "account-opened",
            "account-fact",
            "meter-registered",
            "meter-fact",
            "tariff-published",
            "tariff-fact",
            "balance",
            "alarm",
            "notice",
            "relay-intent",
        )
    }
    | {"charge-frame": {"currency_names", "commodity_names", "legal_entity_names"}},
    "currency and legal entity, of what has no commodity": {
        subject: {"currency", "legal_entity"}
        for subject in ("site-registered", "site-fact", "credit-sold")
    },
    "ledger decimals": {
        subject: {"ledger_decimals", "minor_decimals"}
        for subject in ("site-registered", "site-fact", "account-opened")
    },
    "person": {"account-opened": {"subject_id"}, "account-fact": {"subject_id"}},
}


@pytest.mark.parametrize("identity", IDENTITIES)
def test_the_schemas_carry_every_identity_of_the_architecture(identity: str) -> None:
    for subject, names in IDENTITIES[identity].items():
        assert names <= FIELDS[subject], f"{subject} lacks {names - FIELDS[subject]}"


def test_what_carries_money_says_which() -> None:
    amount = re.compile(r"_(nano|minor|micro)$")
    silent = {
        subject
        for subject, names in FIELDS.items()
        if any(amount.search(name) for name in names)
        and not {"currency", "currency_names"} & names
        and subject != "charge-frame"
    }
    assert silent == set()


def test_no_float_stands_in_any_schema() -> None:
    for subject, schema in SCHEMAS.items():
        assert not re.search(r'"(float|double)"', json.dumps(schema)), subject


# --- persons ----------------------------------------------------------------------------------

OF_A_PERSON = {
    *("name", "names", "surname", "person", "customer", "tenant", "contact", "birthday", "gender"),
    *("phone", "mobile", "telephone", "email", "mail", "address", "street", "city", "postcode"),
    *("passport", "identity", "photo", "room", "flat", "bank", "iban"),
}
ELSEWHERE = {
    ("site-registered", "display_name"): "a site's",
    ("site-fact", "display_name"): "a site's",
    ("Site", "display_name"): "a site's",
    ("SiteStatus", "display_name"): "a site's",
    ("RegisterSiteRequest", "display_name"): "a site's",
    ("gateway-registered", "address"): "on the network",
    ("gateway-fact", "address"): "on the network",
    ("Gateway", "address"): "on the network",
    ("RegisterGatewayRequest", "address"): "on the network",
    ("device-request", "address"): "of a register",
    ("charge-frame", "names"): "a dictionary of tariffs, policies, currencies",
    **{
        ("charge-frame", f"{kind}_names"): "numbers of that dictionary"
        for kind in ("tariff", "policy", "legal_entity", "currency", "commodity")
    },
}
"""What has such a word in its name and is not a person's: whose it is."""


def messages(found: Descriptor) -> list[Descriptor]:
    return [found, *(deeper for nested in found.nested_types for deeper in messages(nested))]


def is_resource_name(message: Descriptor, field: FieldDescriptor) -> bool:
    """Say whether a field is declared to hold a resource name, e.g. accounts/A1."""
    declared: Any = resource_pb2.resource
    refers: Any = resource_pb2.resource_reference
    is_one = message.GetOptions().Extensions[declared].type
    return field.name == "name" and bool(is_one or field.GetOptions().Extensions[refers].type)


def spoken() -> dict[str, set[str]]:
    """Return protobuf message → field names, of all services; resource names name things."""
    modules = (
        importlib.import_module(module.name)
        for package in (wattvend.vending.v1, wattvend.reporting.v1)
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        if module.name.endswith("_pb2")
    )
    return {
        message.name: {
            field.name for field in message.fields if not is_resource_name(message, field)
        }
        for module in modules
        for top in module.DESCRIPTOR.message_types_by_name.values()
        for message in messages(top)
    }


def test_no_schema_has_a_field_for_what_tells_who_somebody_is() -> None:
    telling = {
        (subject, name)
        for subject, names in [*FIELDS.items(), *spoken().items()]
        for name in names
        if OF_A_PERSON & set(name.split("_"))
    }
    assert telling == set(ELSEWHERE)


def test_a_person_is_an_optional_opaque_id_and_stands_nowhere_else() -> None:
    having = {subject for subject, names in FIELDS.items() if "subject_id" in names}
    assert having == {
        *("account-opened", "account-tenant-changed", "account-fact"),
        *("opening-prepared", "opening-started"),
    }
    for subject in having:
        (field,) = (f for f in SCHEMAS[subject]["fields"] if f["name"] == "subject_id")
        assert (field["type"], field["default"]) == (["null", "string"], None)


@pytest.mark.parametrize(
    "value",
    [
        "Zhang Wei",
        "张伟",
        "zhang.wei@example.com",
        "+8613800138000",
        "13800138000",
        "138-0013-8000",
        "11010519491231002X",
        "12 Main Street",
        "",
    ],
)
def test_what_finds_a_person_is_no_subject_id_and_is_not_repeated_in_the_error(value: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        checks.check_subject(value)
    assert refused.value.field == "subject_id"
    assert "opaque" in str(refused.value)
    assert not value or value not in str(refused.value)


@pytest.mark.parametrize(
    "value", ["subject-shop-001", "person-1", "12345678-1234-4123-8123-123456789012"]
)
def test_an_opaque_id_is_a_subject_id(value: str) -> None:
    checks.check_subject(value)
