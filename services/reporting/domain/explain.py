"""What decisions and totals consist of, told from history alone.

A cut-off's intents and attempts: `relay-intents` is compacted, so what was wanted back then is told
by what is kept: every step of control (command outcomes), which carries its intent. Where control
has not done anything yet the intent is still the newest of its meter, or else, decided with the
cut, it follows from the cut and its policy by metering's own rule. A balance's credit: what the
ledger tells of its account.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

from services.common.kernel.values import value_class
from services.reporting.domain.rows import (
    AlarmRow,
    CommandOutcomeRow,
    PolicyVersionRow,
    RelayIntentRow,
)

CUT = "cut"
NOT_CUT = "not-cut"
RESTORED = "restored"
CLEARED = "cleared"
OPEN = "open"
FORCED = "relay-forced"
ORDERS = ("power-kept", "payment-promised", "notice-recorded")
"""Events of an account by which a person or a carrier keeps a cut off, or lets it be."""
SILENT = "evidence-silent"
"""The reason of a decision by a reading that ended a silence."""

_STEPS = (
    "waiting-line",
    "offline",
    "held",
    "over-budget",
    "sent",
    "acknowledged",
    "confirmed",
    "failed",
    "expired",
    "superseded",
)
"""Order of steps that were taken in one millisecond."""
_ORDER = {step: place for place, step in enumerate(_STEPS)}


@value_class
class CutIntent:
    """An intent to cut, with every step of its delivery in order."""

    meter_id: str
    epoch: int
    version_offset: int
    mode: str
    cause: str
    send_before_ms: int | None
    decided_at_ms: int
    steps: Sequence[CommandOutcomeRow]


def intents_of_cut(
    cut: AlarmRow,
    policy: PolicyVersionRow | None,
    outcomes: Iterable[CommandOutcomeRow],
    newest: Iterable[RelayIntentRow],
) -> list[CutIntent]:
    """Return the intents of a cut, its renewals included, by meter and version.

    `outcomes` and `newest`: those of the account that want its relays open, from the cut's offset
    up to where it was restored.
    """
    steps: dict[tuple[str, int, int], list[CommandOutcomeRow]] = {}
    known = {(row.meter_id, row.epoch, row.version_offset): row for row in newest}
    for outcome in outcomes:
        version = (outcome.meter_id, outcome.intent_epoch, outcome.intent_offset)
        steps.setdefault(version, []).append(outcome)
    if cut.meter_id is not None and cut.intent_epoch is not None and cut.intent_offset is not None:
        steps.setdefault((cut.meter_id, cut.intent_epoch, cut.intent_offset), [])
    return [
        _intent(version, cut, policy, steps.get(version, ()), known.get(version))
        for version in sorted(steps.keys() | known.keys())
    ]


def _intent(
    version: tuple[str, int, int],
    cut: AlarmRow,
    policy: PolicyVersionRow | None,
    steps: Sequence[CommandOutcomeRow],
    known: RelayIntentRow | None,
) -> CutIntent:
    meter_id, epoch, version_offset = version
    ordered = sorted(steps, key=_when)
    if ordered:
        told = ordered[0]
        said = (told.mode, told.cause, told.send_before_ms, told.intent_decided_at_ms)
    elif known is not None:
        said = (known.mode, known.cause, known.send_before_ms, known.decided_at_ms)
    else:
        said = ("prepaid", "arrears", _lease_end(cut, policy), cut.decided_at_ms)
    return CutIntent(meter_id, epoch, version_offset, *said, ordered)


def _lease_end(cut: AlarmRow, policy: PolicyVersionRow | None) -> int | None:
    """Return send_before as metering sets it (its README, rule 7)."""
    if policy is None or cut.reading_received_at_ms is None:
        return None
    return min(
        cut.decided_at_ms + policy.lease_ms,
        cut.reading_received_at_ms + policy.max_evidence_age_ms,
    )


def _when(outcome: CommandOutcomeRow) -> tuple[int, int, int]:
    return outcome.decided_at_ms, outcome.attempt, _ORDER.get(outcome.result, len(_ORDER))


@value_class
class BookEvent:
    """An event of a stream of the book. `credited_nano`: lifetime total after it, if it tells one.

    `receipt_id`: of the receipt that was given, or "". `until_ms`, `notice_id`, `outcome`: what an
    order tells, or None and "".
    """

    type: str
    event_id: UUID
    receipt_id: str
    book_epoch: int
    revision: int
    credited_nano: int | None
    occurred_at_ms: int
    until_ms: int | None = None
    notice_id: str = ""
    outcome: str = ""


@value_class
class Credit:
    """What an event added to an account's lifetime credit, and the total after it."""

    event: BookEvent
    added_nano: int
    credited_nano: int


def standing(events: Iterable[BookEvent], book: tuple[int, int]) -> list[BookEvent]:
    """Return what an account's stream consists of, as of a (book_epoch, revision).

    A store that was restored to an earlier point goes on from there in a higher epoch: what the
    epoch before had told beyond that point is gone.
    """
    found: list[BookEvent] = []
    for event in sorted(events, key=lambda each: (each.book_epoch, each.revision)):
        if (event.book_epoch, event.revision) > book:
            break
        while found and found[-1].revision >= event.revision:
            found.pop()
        found.append(event)
    return found


def credits_of(events: Iterable[BookEvent], book: tuple[int, int]) -> list[Credit]:
    """Return what the credit of an account consists of, as of a (book_epoch, revision)."""
    found: list[Credit] = []
    before_nano = 0
    for event in standing(events, book):
        if event.credited_nano is not None and event.credited_nano != before_nano:
            added_nano = event.credited_nano - before_nano
            found.append(Credit(event, added_nano, event.credited_nano))
            before_nano = event.credited_nano
    return found


def orders_of(
    events: Iterable[BookEvent], book: tuple[int, int], kinds: Sequence[str] = ORDERS
) -> list[BookEvent]:
    """Return the newest order of each kind that the book had told, as of a revision."""
    newest = {event.type: event for event in standing(events, book) if event.type in kinds}
    return [newest[kind] for kind in kinds if kind in newest]
