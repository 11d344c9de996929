"""A reporting on paper: it writes exports down, once each, and outlives who asks it."""

import hashlib
from collections import defaultdict
from collections.abc import Callable

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.vending.domain.batch import Exported

AS_OF_MS = 1_790_000_000_123
_KEPT: defaultdict[str, dict[tuple[str, str], Exported]] = defaultdict(dict)


class PaperReporting:
    """What is kept for the book at an address: (export, meter) → what was written.

    A meter M7 has seven readings, M0 none. `asked`: whose were to be written, or tried; `failing`:
    so many calls it answers with INTERNAL.
    """

    def __init__(self, book: str) -> None:
        self.kept = _KEPT[book]
        self.unknown: set[str] = set()
        self.away = ""
        self.failing = 0
        self.asked: list[str] = []
        self.before: Callable[[str], None] = lambda _: None

    async def write(
        self, export_id: str, meter_id: str, from_ms: int, to_ms: int, *, validate_only: bool
    ) -> Exported:
        self.before(meter_id)
        self.asked.append(meter_id)
        if self.away:
            raise Retriable(self.away)
        if self.failing:
            self.failing -= 1
            raise InvalidInput(Reason.INTERNAL, "the service failed")
        if meter_id in self.unknown:
            raise InvalidInput(Reason.METER_NOT_FOUND, f"reporting knows no meter {meter_id}")
        rows = int(meter_id[1:])
        if validate_only:
            return Exported(rows, 0, b"", AS_OF_MS)
        # What is read is new each time: who asks twice is told of the first.
        at_ms = AS_OF_MS + len(self.asked)
        text = "".join(f"{meter_id},{at},{at_ms}\n" for at in range(from_ms, from_ms + rows))
        digest = hashlib.sha256(text.encode()).digest()
        assert from_ms < to_ms
        return self.kept.setdefault((export_id, meter_id), Exported(rows, len(text), digest, at_ms))
