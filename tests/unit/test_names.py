"""Resource names: what is built is read back, and what cannot be read says what to write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import ID_PATTERN
from services.vending.adapters.names import of_stream

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
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
