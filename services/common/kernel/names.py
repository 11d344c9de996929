"""Resource names (AIP-122): what the APIs call an account, a meter, a receipt.

A name is `accounts/` and the id, so that nobody takes one thing for another. Ids that the platform
gives out, and those that match ID_PATTERN, stand in it as they are. A free text (a legal entity, a
seller's own transaction) does too, in any script, but "/" is written %2F and "%" is written %25:
names are compared and split at "/", and never part of a URL unless the client quotes them. None has
a character that cannot be printed: a terminal would obey it, and PostgreSQL stores no NUL.
"""

import re
from functools import cached_property
from urllib.parse import unquote

from services.common.kernel.errors import InvalidInput, shown
from services.common.kernel.ids import ID_PATTERN
from services.common.kernel.reasons import Reason

_ID = f"({ID_PATTERN})"
_ACCOUNT_ID = f"((?:house:)?{ID_PATTERN})"
_UUID = "([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_TEXT = "((?:[^%/]|%[0-9A-Fa-f]{2})+)"
_RULES = {
    _ID: "1 to 63 letters, digits, dots, underscores or dashes, beginning with a letter or digit",
    _ACCOUNT_ID: "1 to 63 letters, digits, dots, underscores or dashes, beginning with a letter or "
    "digit",
    _UUID: "the UUID as it was told, in full",
    _TEXT: 'its text of printable characters, in which "/" is written %2F and "%" is written %25',
}


class Pattern:
    """The names of one kind of thing, e.g. `accounts/{account}`."""

    def __init__(self, pattern: str, segment: str = _ID) -> None:
        """Write `pattern` with a variable in braces for each id; `segment`: what an id may be."""
        self.pattern = pattern
        self._segment = segment

    def __str__(self) -> str:
        """Return the pattern."""
        return self.pattern

    @cached_property
    def _names(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\{\w+\}", lambda _: self._segment, self.pattern), re.DOTALL)

    @cached_property
    def _format(self) -> str:
        return re.sub(r"\{\w+\}", "{}", self.pattern)

    def name(self, *ids: str) -> str:
        """Return the name of what has these ids."""
        if self._segment is _TEXT:
            ids = tuple(id_.replace("%", "%25").replace("/", "%2F") for id_ in ids)
        return self._format.format(*ids)

    def ids(self, field: str, name: str) -> tuple[str, ...]:
        """Return the ids in a name, which came in `field`. Raises InvalidInput."""
        found = self._names.fullmatch(name)
        if found is None:
            raise self._wrong(field, name)
        if self._segment is not _TEXT:
            return found.groups()
        try:
            ids = tuple(unquote(part, errors="strict") for part in found.groups())
        except UnicodeDecodeError:
            raise self._wrong(field, name) from None
        if not all(map(str.isprintable, ids)):
            raise self._wrong(field, name)
        return ids

    def id(self, field: str, name: str) -> str:
        """Return the one id in a name, which came in `field`. Raises InvalidInput."""
        (found,) = self.ids(field, name)
        return found

    def id_if(self, field: str, name: str) -> str:
        """Return the one id in a name, "" where none was given. Raises InvalidInput."""
        return self.id(field, name) if name else ""

    def name_if(self, id_: str | None) -> str:
        """Return the name of what has an id, "" where there is none."""
        return self.name(id_) if id_ else ""

    def _wrong(self, field: str, name: str) -> InvalidInput:
        what = f"{shown(name)} is no name of this kind" if name else "a name is missing"
        ids = " and ".join(re.findall(r"\{\w+\}", self.pattern))
        return InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"{field}: {what}; write {self.pattern} with, for {ids}, {_RULES[self._segment]}",
            field=field,
        )


SITE = Pattern("sites/{site}")
GATEWAY = Pattern("gateways/{gateway}")
METER = Pattern("meters/{meter}")
ACCOUNT = Pattern("accounts/{account}", _ACCOUNT_ID)
"""Also a meter's house account, `accounts/house:{meter}`."""
BALANCE = Pattern("accounts/{account}/balance", _ACCOUNT_ID)
OPENING = Pattern("openings/{opening}")
"""{opening} is the id of the account that opens."""
TARIFF = Pattern("tariffs/{tariff}")
POLICY = Pattern("policies/{policy}")
RECEIPT = Pattern("receipts/{receipt}", _UUID)
APPROVAL = Pattern("approvals/{approval}", _UUID)
CLOSING = Pattern("accounts/{account}/closings/{closing}")
ALARM = Pattern("alarms/{alarm}", _UUID)
EXCEPTION = Pattern("exceptions/{exception}", _UUID)
BATCH = Pattern("batches/{batch}")
EXPORT = Pattern("exports/{export}")
"""{export} is the id of the batch."""
EXPORT_CHUNK = Pattern("exports/{export}/chunks/{chunk}")
"""{chunk} is the id of the meter."""
DOCUMENT = Pattern("documents/{document}")
SELLER = Pattern("sellers/{seller}", _TEXT)
"""A caller, as a seller of its own reservations."""
PAYMENT = Pattern("sellers/{seller}/payments/{payment}", _TEXT)
"""{payment} is the seller's own transaction id."""
LEGAL_ENTITY = Pattern("legalEntities/{legal_entity}", _TEXT)
AUTHORITY = Pattern("legalEntities/{legal_entity}/authority", _TEXT)
