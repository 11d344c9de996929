"""What the verifier must remember of a big book, on disk as soon as it does not fit into memory."""

import sqlite3
from collections.abc import Iterable
from typing import Self

from services.vending.application.verifying import Last
from services.vending.domain.event_store import StreamId

NAMES_MAX = 500
"""Of one query."""


class ScratchLasts:
    """services.vending.application.verifying.Lasts in a temporary file, which SQLite removes."""

    def __init__(self) -> None:
        """Begin empty."""
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.execute("PRAGMA journal_mode=OFF")
        self._file.execute(
            "CREATE TABLE last(stream TEXT PRIMARY KEY, position INTEGER, revision INTEGER, "
            "type TEXT, hash BLOB) WITHOUT ROWID"
        )

    def load(self, streams: Iterable[StreamId]) -> dict[StreamId, Last]:
        """Return those known of `streams`."""
        wanted = list(streams)
        found: dict[StreamId, Last] = {}
        for begin in range(0, len(wanted), NAMES_MAX):
            names = wanted[begin : begin + NAMES_MAX]
            marks = ",".join("?" * len(names))
            rows = self._file.execute(f"SELECT * FROM last WHERE stream IN ({marks})", names)  # noqa: S608 - marks
            found |= {StreamId(stream): Last(*last) for stream, *last in rows}
        return found

    def save(self, lasts: dict[StreamId, Last]) -> None:
        """Keep them."""
        rows = [(s, k.position, k.revision, k.type, k.hash) for s, k in lasts.items()]
        self._file.execute("BEGIN")
        self._file.executemany("INSERT OR REPLACE INTO last VALUES(?,?,?,?,?)", rows)
        self._file.execute("COMMIT")

    def count(self) -> int:
        """Return how many streams are known."""
        return int(self._file.execute("SELECT count(*) FROM last").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
