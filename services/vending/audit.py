"""The command `audit`: the audit trail as a table for a person, or as JSON for a program."""

# ruff: noqa: T201 - what it prints is the answer to a person

import argparse
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from services.vending.adapters import stores
from services.vending.application.auditing import Entry, Sought, trail
from services.vending.config import VendingSettings
from services.vending.domain.event_store import FROM_START

_ROW = "{:>9}  {:<24}  {:<20}  {:<20}  {:<18}  {:<15}  {:<18}  {}"
_HEAD = _ROW.format("position", "at", "stream", "type", "by", "from", "approved by", "what it says")


def add_to(commands: Any) -> None:
    """Add the command to those of a command line."""
    what = "print who did what, when, from where, by whose approval; vending may run meanwhile"
    parser = commands.add_parser(
        "audit",
        help=what,
        description=f"{what}. Oldest first. An instant is ISO 8601, UTC where it names no zone.",
    )
    parser.add_argument("--stream", default="", help="of one stream, e.g. account-A1")
    parser.add_argument("--caller", default="", help="asked for by a system")
    parser.add_argument("--actor", default="", help="asked for by a person: their opaque id")
    parser.add_argument("--approved-by", default="", help="approved by: caller, space, person")
    parser.add_argument("--type", default="", help="of one type, e.g. credit-sold")
    parser.add_argument("--since", type=_instant_ms, help="decided at this instant or after it")
    parser.add_argument("--until", type=_instant_ms, help="decided before this instant")
    parser.add_argument("--after", type=int, default=FROM_START, help="above this position")
    parser.add_argument("--limit", type=int, default=1000, help="at most so many (%(default)s)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line, with everything")


def _instant_ms(text: str) -> int:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no instant; write e.g. 2026-03-01 or 2026-03-01T08:30:00+08:00"
        ) from None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return (instant - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


async def audit(settings: VendingSettings, chosen: argparse.Namespace) -> int:
    """Print who did what, when, from where, by whose approval."""
    sought = Sought(
        chosen.stream,
        chosen.caller,
        chosen.actor,
        chosen.approved_by,
        chosen.type,
        chosen.since,
        chosen.until,
    )
    shown = _as_json if chosen.json else as_row
    count, last = 0, FROM_START
    async with stores.reading(settings.store_address, "audit") as stored:
        async for entry in trail(stored.store, stored.tables, sought, chosen.after):
            if count == chosen.limit:
                print(f"There are more: go on with --after {last}", file=sys.stderr)
                break
            if not count and not chosen.json:
                print(_HEAD)
            print(shown(entry))
            count, last = count + 1, entry.position
    return 0


def _as_json(entry: Entry) -> str:
    return orjson.dumps(
        {
            "position": entry.position,
            "at": _instant(entry.at_ms),
            "stream": entry.stream,
            "revision": entry.revision,
            "type": entry.type,
            "request_id": entry.request_id,
            "caller": entry.origin.caller,
            "actor": entry.origin.actor,
            "peer": entry.origin.peer,
            "approved_by": entry.origin.approved_by,
            "said": entry.said,
        },
        default=bytes.hex,
    ).decode()


def as_row(entry: Entry) -> str:
    """Return an entry as a line of a table, of what it says the short parts."""
    said = ", ".join(
        f"{name} {value if str(value).isprintable() else repr(value)}"  # a terminal obeys the rest
        for name, value in entry.said.items()
        if isinstance(value, int | str) and value != ""
    )
    return _ROW.format(
        entry.position,
        _instant(entry.at_ms),
        entry.stream,
        entry.type,
        entry.origin.who or "-",
        entry.origin.peer or "-",
        entry.origin.approved_by or "-",
        said,
    )


def _instant(at_ms: int) -> str:
    """Return an instant as people write it, in UTC."""
    seconds, milliseconds = divmod(at_ms, 1000)
    instant = datetime.fromtimestamp(seconds, UTC)
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{milliseconds:03}Z"
