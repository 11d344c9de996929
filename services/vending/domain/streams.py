"""The streams of the book: what each is called and how it is folded."""

from collections.abc import Callable
from typing import Any

from services.common.kernel.errors import Bug
from services.vending.domain import (
    account_history,
    approval,
    authority,
    batch,
    document,
    gateway,
    meter_history,
    opening,
    payment,
    policy,
    site,
    tariff,
)
from services.vending.domain.account import Account
from services.vending.domain.approval import Proposal
from services.vending.domain.authority import Authority
from services.vending.domain.batch import Batch
from services.vending.domain.document import Document
from services.vending.domain.event_store import StreamId
from services.vending.domain.events.event import Event
from services.vending.domain.gateway import Gateway
from services.vending.domain.meter import Meter
from services.vending.domain.opening import Opening
from services.vending.domain.payment import Payment
from services.vending.domain.policy import Policy
from services.vending.domain.site import Site
from services.vending.domain.tariff import Tariff

State = (
    Site
    | Gateway
    | Meter
    | Account
    | Tariff
    | Policy
    | Document
    | Authority
    | Proposal
    | Payment
    | Batch
    | Opening
)
Evolve = Callable[[Any, Event], State]

_EVOLVE: dict[str, Evolve] = {
    "site": site.evolve,
    "gateway": gateway.evolve,
    "meter": meter_history.evolve,
    "account": account_history.evolve,
    "opening": opening.evolve,
    "tariff": tariff.evolve,
    "policy": policy.evolve,
    "document": document.evolve,
    "authority": authority.evolve,
    "approval": approval.evolve,
    "payment": payment.evolve,
    "batch": batch.evolve,
}
_KINDS: dict[type, str] = {
    Site: "site",
    Gateway: "gateway",
    Meter: "meter",
    Account: "account",
    Opening: "opening",
    Tariff: "tariff",
    Policy: "policy",
    Document: "document",
    Authority: "authority",
    Proposal: "approval",
    Payment: "payment",
    Batch: "batch",
}


def stream_of(kind: type, entity_id: str) -> StreamId:
    """Return the stream of an entity, e.g. `account-A1`."""
    return StreamId(f"{_KINDS[kind]}-{entity_id}")


def entity_of(stream: StreamId) -> tuple[str, str]:
    """Return kind and id of the entity that a stream is of."""
    kind, _, entity_id = stream.partition("-")
    return kind, entity_id


def evolve_of(stream: StreamId) -> Evolve:
    """Return what folds a stream."""
    kind, _ = entity_of(stream)
    if kind not in _EVOLVE:
        raise Bug(f"stream {stream} is of no known kind; a newer vending wrote it")
    return _EVOLVE[kind]
