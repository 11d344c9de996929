"""Where a book stands on a server: the connection string, checked, with what it leaves unsaid.

    kurrentdb://user:password@host:2113/wattvend?tlsCaFile=/etc/wattvend/kurrent-ca.pem

The schemes and the query are the client's (`esdb`, `kurrentdb`, and with `+discover` for a cluster
behind one name). Two things are ours: the path is the name of the book, the prefix of its streams;
`index` in the query is the file of its index here. The password is never shown: errors name the
address without it.
"""

import ipaddress
import re
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from kurrentdbclient.connection_spec import ConnectionSpec

from services.common.kernel.errors import WattvendError
from services.common.kernel.values import value_class

BOOK = "wattvend"
BOOK_PATTERN = re.compile(r"[a-z0-9_]{1,32}")
INDEX = "index"
INDEX_DIRECTORY = Path("data/vending")
KEEP_ALIVE_MS = 10_000
"""A connection that died without a word is noticed after twice this."""


@value_class
class KurrentAddress:
    """A connection string for the client, the book's name, its index; `shown`: no password."""

    uri: str
    book: str
    index: Path
    shown: str

    @classmethod
    def parse(cls, url: str, connection_name: str) -> Self:
        """Return what a connection string says. Raises WattvendError, without its password."""
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        book = parts.path.strip("/") or BOOK
        if not BOOK_PATTERN.fullmatch(book):
            raise WattvendError(f"{shown}: the path names the book: small letters, digits and _")
        said = dict(parse_qsl(parts.query))
        index = Path(said.pop(INDEX, INDEX_DIRECTORY / f"{book}-index.sqlite"))
        given = {name.lower() for name in said}
        unsaid = {
            "connectionName": connection_name,
            "keepAliveInterval": str(KEEP_ALIVE_MS),
            "keepAliveTimeout": str(KEEP_ALIVE_MS),
        }
        said |= {name: value for name, value in unsaid.items() if name.lower() not in given}
        query = urlencode(said, safe="/")
        uri = f"{parts.scheme}://{parts.netloc}?{query}"
        _check(uri, shown)
        return cls(uri, book, index, shown)


def _check(uri: str, shown: str) -> None:
    try:
        spec = ConnectionSpec(uri)
    except ValueError as wrong:
        why = str(wrong).replace(f": {uri}", "")
        raise WattvendError(f"{shown} is no connection string: {why}") from None
    options = spec.options
    if not options.tls and not all(_is_here(target) for target in spec.targets):
        raise WattvendError(f"{shown}: TLS may only be off where the server is on this machine")
    if not options.tls_verify_cert:
        raise WattvendError(
            f"{shown}: the certificate is always verified; name its authority with tlsCaFile"
        )
    if options.node_preference != "leader":
        raise WattvendError(f"{shown}: only the leader knows what is stored: nodePreference=leader")


def _is_here(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
