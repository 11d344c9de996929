"""What the rest of the platform is told: absolute facts, from the folded state after an event.

A fact's book version is (book epoch, revision of its stream), so whoever keeps the highest has the
truth, whether it arrives once, twice or late.
"""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from services.common.kernel.ids import column_key, name_uuid
from services.common.kernel.values import value_class
from services.vending.domain.account import Account
from services.vending.domain.event_store import StreamId
from services.vending.domain.gateway import Gateway
from services.vending.domain.meter import Meter
from services.vending.domain.policy import Policy
from services.vending.domain.site import Site
from services.vending.domain.streams import stream_of
from services.vending.domain.tariff import Tariff

Told = Site | Gateway | Meter | Account | Tariff | Policy
"""Whose events make facts; of other streams `ledger` alone tells."""


@value_class
class Fact:
    """A fact and where it goes: always to the registry under `entity`, and to `shards`.

    `log_key`: the account it is about, "" where it is about none.
    """

    subject: str
    entity: str
    record: dict[str, Any]
    shards: tuple[int, ...]
    log_key: str
    event_id: UUID


def fact_of(state: Told, *, book_epoch: int, shards: int, everywhere: bool = False) -> Fact:
    """Return the fact that an event makes known; `state`: its stream's after it.

    Sites, tariffs and policies go to every shard when they are published: before the first account
    that uses them, because the relay keeps the order of the store. `everywhere`: a meter's too.
    """
    every = tuple(range(shards))
    match state:
        case Site():
            kind, entity, record = "site", f"sites/{state.site_id}", _site(state)
            where, log_key, name = every, "", state.site_id
        case Gateway():
            kind, entity, record = "gateway", f"gateways/{state.gateway_id}", _gateway(state)
            where, log_key, name = (), "", state.gateway_id
        case Tariff():
            kind, entity = "tariff", f"tariffs/{state.tariff_id}/{state.version}"
            where, log_key, name, record = every, "", state.tariff_id, _tariff(state)
        case Policy():
            kind, entity, record = "policy", f"policies/{state.policy_id}", _policy(state)
            where, log_key, name = every, "", state.policy_id
        case Account():
            kind, entity, record = "account", f"accounts/{state.account_id}", _account(state)
            where, log_key, name = (state.shard,), state.account_id, state.account_id
        case Meter():
            kind, entity, record = "meter", f"meters/{state.meter_id}", _meter(state)
            where = every if everywhere else _meter_shards(state)
            log_key, name = state.account_id, state.meter_id
    revision = state.answers.revision
    record |= {"book_epoch": book_epoch, "revision": revision}
    stream = stream_of(type(state), name)
    return Fact(
        f"{kind}-fact",
        entity,
        record,
        where,
        log_key,
        fact_id(f"{kind}-fact", stream, book_epoch, revision),
    )


def fact_id(subject: str, stream: StreamId, book_epoch: int, revision: int) -> UUID:
    """Return the identity of a fact: the same however often it is published."""
    return name_uuid(subject, stream, book_epoch, revision)


def _meter_shards(state: Meter) -> tuple[int, ...]:
    """Return the shard that the meter left last, if another, and the one in which it stands.

    Of every fact: after a raise of the book epoch the newest comes alone, and must say all. A book
    that was restored to an earlier point does not know to which shards the events that it lost had
    moved the meter: then every shard is told, and that one lets it go.
    """
    left = () if state.previous is None else (state.previous.shard,)
    return tuple(dict.fromkeys((*left, state.shard)))


def _fields(state: Told, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(state, name) for name in names}


def _site(state: Site) -> dict[str, Any]:
    return _fields(
        state,
        (
            "site_id",
            "display_name",
            "zone",
            "currency",
            "ledger_decimals",
            "minor_decimals",
            "legal_entity",
            "cuts_held",
            "cuts_per_minute",
        ),
    )


def _gateway(state: Gateway) -> dict[str, Any]:
    return _fields(state, ("gateway_id", "site_id", "line_id", "protocol", "address"))


def _meter(state: Meter) -> dict[str, Any]:
    previous = state.previous
    key = column_key("account", previous.account_id) if previous else None
    return _fields(
        state,
        (
            "meter_id",
            "meter_key",
            "serial",
            "site_id",
            "gateway_id",
            "line_id",
            "unit",
            "profile",
            "commodity",
            "ratio",
            "max_power_w",
            "epoch",
            "account_id",
            "is_house",
            "shard",
            "currency",
            "legal_entity",
            "opening_register_milli",
            "closing_register_milli",
            "register_max_milli",
            "forced",
            "resolves_reading_id",
            "resolution",
        ),
    ) | {
        "account_key": column_key("account", state.account_id),
        "previous_account_id": previous.account_id if previous else None,
        "previous_account_key": key,
        "previous_shard": previous.shard if previous else None,
        "previous_epoch": previous.epoch if previous else None,
    }


def _account(state: Account) -> dict[str, Any]:
    holding = (state.closing, state.refunding)
    return _fields(
        state,
        (
            "account_id",
            "account_key",
            "shard",
            "site_id",
            "subject_id",
            "currency",
            "legal_entity",
            "commodity",
            "tariff_id",
            "policy_id",
            "credited_nano",
            "held_nano",
        ),
    ) | {
        "status": state.status.value,
        "hold_id": next((hold.hold_id for hold in holding if hold and hold.hold_id), None),
        "thaw_id": state.orders.thaw_id,
        "keep_power_until_ms": state.orders.keep_power_until_ms,
        "promise_until_ms": state.orders.promise_until_ms,
        "notice_id": state.orders.notice_id,
        "notice_outcome": state.orders.notice_outcome,
    }


def _tariff(state: Tariff) -> dict[str, Any]:
    return _fields(
        state,
        (
            "tariff_id",
            "version",
            "kind",
            "commodity",
            "currency",
            "legal_entity",
            "price_micro",
            "plan",
            "effective_at_ms",
            "published_at_ms",
        ),
    )


def _policy(state: Policy) -> dict[str, Any]:
    return _fields(
        state,
        (
            "policy_id",
            "version",
            "currency",
            "alarm_1_nano",
            "alarm_2_nano",
            "overdraft_nano",
            "restore_nano",
            "lease_ms",
            "max_evidence_age_ms",
            "rules",
            "published_at_ms",
        ),
    )
