"""Goal: a connection string that would weaken the book is refused, and its password is not told.

Method: what is said, what is left unsaid, and what must not be said.
"""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from services.common.kernel.errors import WattvendError
from services.vending.adapters.kurrent_address import KEEP_ALIVE_MS, KurrentAddress

SECRET = "s3cret"
SERVER = f"kurrentdb://clerk:{SECRET}@db.example.com:2113"


def test_the_path_is_the_book_and_a_dead_connection_is_noticed_unless_said_otherwise() -> None:
    address = KurrentAddress.parse(f"{SERVER}/mall_7?tlsCaFile=/etc/ca.pem", "vending-0")
    assert (address.book, address.shown) == ("mall_7", "kurrentdb://db.example.com:2113/mall_7")
    assert address.index == Path("data/vending/mall_7-index.sqlite")
    query = parse_qs(urlsplit(address.uri).query)
    assert query["tlsCaFile"] == ["/etc/ca.pem"]
    assert query["connectionName"] == ["vending-0"]
    assert query["keepAliveInterval"] == query["keepAliveTimeout"] == [str(KEEP_ALIVE_MS)]
    said = KurrentAddress.parse(
        f"{SERVER}?keepaliveinterval=7&connectionname=x&index=/var/index.sqlite", "vending-0"
    )
    assert said.index == Path("/var/index.sqlite")
    assert "/var/index.sqlite" not in said.uri
    assert said.book == "wattvend"
    assert "keepAliveInterval" not in said.uri
    assert "connectionName" not in said.uri


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (f"{SERVER}?tls=false", "TLS may only be off"),
        (f"esdb://clerk:{SECRET}@127.0.0.1:1,db.example.com:2?tls=false", "TLS may only be off"),
        (f"{SERVER}?tlsVerifyCert=false", "always verified"),
        (f"{SERVER}?nodePreference=follower", "only the leader"),
        (f"{SERVER}?password={SECRET}", "Unknown field in connection query string: PASSWORD"),
        (f"{SERVER}/Mall 7", "names the book"),
        (f"kurrentdb://:{SECRET}@db.example.com", "Username and password are required"),
        (f"http://clerk:{SECRET}@db.example.com", "Invalid URI scheme"),
    ],
)
def test_what_weakens_the_book_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises(WattvendError, match=why) as refused:
        KurrentAddress.parse(url, "vending-0")
    assert SECRET not in str(refused.value)
    assert refused.value.__context__ is None or refused.value.__suppress_context__


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_may_do_without_tls(host: str) -> None:
    assert KurrentAddress.parse(f"esdb://{host}:2113?tls=false", "vending-0").book == "wattvend"
