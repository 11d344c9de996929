"""Pages of lists: how many, and where the next one begins.

A token says after which entry the next page begins, and of which list; it is opaque to callers.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import fits_int64

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1000
TOKEN_SIZE_MAX = 1024

Cursor = tuple[int | str, ...]


def page_size_of(asked: int) -> int:
    """Return the entries of a page; 0 asks for the default. Raises InvalidInput."""
    if not 0 <= asked <= PAGE_SIZE_MAX:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"a page of {asked} entries; 1..{PAGE_SIZE_MAX} may be, 0 means {PAGE_SIZE_DEFAULT}",
            field="page_size",
        )
    return asked or PAGE_SIZE_DEFAULT


def token_of(listed: Sequence[str], last: Cursor) -> str:
    """Return the token of the page after the entry `last`.

    `listed` names the list: the method and its filters. A token of another list is refused.
    """
    content = json.dumps([_fingerprint(listed), *last], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def cursor_of(listed: Sequence[str], token: str, kinds: Sequence[type[int | str]]) -> Cursor | None:
    """Return what `token_of` was given, None for the first page. Raises InvalidInput.

    `kinds`: the types of the cursor's parts.
    """
    if not token:
        return None
    found = _parts(token)
    if found is None or found[0] != _fingerprint(listed) or not _fits(found[1:], kinds):
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            "page_token is none that this list gave out: pass next_page_token of the answer "
            "before with the same filters, or leave it empty for the first page",
            field="page_token",
        )
    return tuple(found[1:])


def _parts(token: str) -> list[Any] | None:
    if len(token) > TOKEN_SIZE_MAX:
        return None
    padded = token + "=" * (-len(token) % 4)
    try:
        found = json.loads(base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):  # not base64, not UTF-8, not JSON
        return None
    return found if isinstance(found, list) and found else None


def _fits(cursor: Sequence[object], kinds: Sequence[type]) -> bool:
    return len(cursor) == len(kinds) and all(
        type(part) is kind
        and (not isinstance(part, int) or fits_int64(part))
        and (not isinstance(part, str) or "\x00" not in part)
        for part, kind in zip(cursor, kinds, strict=True)
    )


def _fingerprint(listed: Sequence[str]) -> str:
    return name_uuid("page", *listed).hex[:8]
