"""What a relay told a Notebook, as an import or a comparison reads it from `ledger`."""

from collections.abc import Iterable
from uuid import UUID

from services.common.runtime.kafka import Outgoing
from services.vending.adapters.bus import checkpoint_of
from services.vending.application.ledger import Ledger, LedgerEvent
from services.vending.domain.event_store import StreamId
from services.vending.domain.tables import Checkpoint


def told_in(records: Iterable[Outgoing]) -> list[LedgerEvent | Checkpoint]:
    """Return what stands in `ledger`, each event once."""
    told: list[LedgerEvent | Checkpoint] = []
    position = 0
    for said in records:
        value = said.record
        if said.subject == "ledger-checkpoint":
            told.append(checkpoint_of(value))
        elif said.subject == "ledger-event" and value["position"] > position:
            position = value["position"]
            told.append(
                LedgerEvent(
                    position,
                    StreamId(value["stream"]),
                    value["revision"],
                    UUID(value["event_id"]),
                    value["type"],
                    value["data"],
                    value["data_version"],
                    value["meta"],
                    value["previous_hash"],
                )
            )
    return told


def above(
    told: Iterable[LedgerEvent | Checkpoint], position: int
) -> list[LedgerEvent | Checkpoint]:
    """Return what ledger has above a position."""
    return [t for t in told if isinstance(t, Checkpoint) or t.position > position]


async def as_ledger(told: Iterable[LedgerEvent | Checkpoint]) -> Ledger:
    """Yield it."""
    for each in told:
        yield each
