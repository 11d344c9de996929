"""absorb(shard, record): one record of the shard's log, and everything that follows from it.

Pure but for the arrays it works on: no I/O, no clock. The same log gives the same outputs and
rows, however often it is absorbed and wherever it was interrupted.
"""

from dataclasses import replace

import numpy as np

from services.common.kernel.frames import ReadingFrame
from services.common.kernel.ids import name_uuid
from services.common.kernel.units import fits_int64
from services.common.policies.levels import CUT
from services.metering.domain.causes import Cause
from services.metering.domain.closings import close_meter, let_wait, must_wait, resolve_closing
from services.metering.domain.errors import BadRecord
from services.metering.domain.facts import Array
from services.metering.domain.fees import post_fees, set_due
from services.metering.domain.freezing import freeze, thaw
from services.metering.domain.holds import resolve, tell_leaving, tell_silence
from services.metering.domain.judging import close, end_refusal, judge, obey
from services.metering.domain.messages import Absorbed, LogRecord, Outputs
from services.metering.domain.outbox import Outbox
from services.metering.domain.readings import absorb_readings
from services.metering.domain.rows import (
    ABSORB_VERSION,
    LAYOUT_VERSION,
    METERS_MAX,
    Fact,
    account_entity,
    meter_entity,
)
from services.metering.domain.shard import ShardState, Stay

__all__ = ["ABSORB_VERSION", "LAYOUT_VERSION", "absorb"]


def absorb(state: ShardState, record: LogRecord) -> Absorbed:
    """Absorb the record at `record.offset`; return what it caused. Rule 1: once.

    Raises BadRecord, before anything is changed, where the record cannot be of this shard's log.
    An account that cannot be charged is frozen and raises nothing.
    """
    if record.offset <= state.offset:
        return Absorbed(Outputs([], None), (), (), state.header_row())
    check(state, record)
    state.now_ms = max(state.now_ms, record.timestamp_ms)
    out = Outbox(state, record.offset)
    if isinstance(record.value, ReadingFrame):
        absorb_readings(out, record.value.rows)
    else:
        _FACTS[record.subject](out, record.value)
    state.offset = record.offset
    return out.absorbed()


def check(state: ShardState, record: LogRecord) -> None:
    framed = isinstance(record.value, ReadingFrame)
    if framed != (record.subject == "reading-frame") or not (framed or record.subject in _FACTS):
        raise BadRecord(
            f"offset {record.offset} of shard {state.shard} is a {record.subject!r} with a "
            f"{type(record.value).__name__}; metering knows reading-frame, {', '.join(_FACTS)}"
        )
    if isinstance(record.value, ReadingFrame) and record.value.shard != state.shard:
        raise BadRecord(
            f"offset {record.offset} of shard {state.shard} is a frame of shard "
            f"{record.value.shard}: ingest sent it to another partition than its shard's"
        )


def _site_fact(out: Outbox, fact: Fact) -> None:
    entity = f"sites/{fact['site_id']}"
    if not _is_old(out, entity, fact):
        _keep(out, entity, fact)


def _tariff_fact(out: Outbox, fact: Fact) -> None:
    entity = f"tariffs/{fact['tariff_id']}/{fact['version']}"
    if _is_old(out, entity, fact):
        return
    _keep(out, entity, fact)
    slots = _accounts_of(out, out.state.tariffs.put(fact))
    if fact["version"] > 1 and fact["effective_at_ms"] < out.state.now_ms:
        out.count("fact-late")
        for site_id in sorted(_sites_of(out.state, slots)):
            out.fact_late(fact, site_id)
    # Windows that end behind the instant of a version were priced without it.
    effective_at_ms = fact["effective_at_ms"]
    forgot = [slot for slot in slots.tolist() if out.state.forget_windows(slot, effective_at_ms)]
    if forgot:
        out.touch(np.array(forgot))
    set_due(out, slots)


def _accounts_of(out: Outbox, tariff: int) -> Array:
    """Return the slots of a tariff's accounts that have not absorbed the record yet."""
    state = out.state
    count = state.account_count
    state.link_read(np.arange(count))
    links, accounts = state.account_links[:count], state.accounts[:count]
    return np.flatnonzero((links["tariff"] == tariff) & (accounts["offset"] < out.offset))


def _sites_of(state: ShardState, slots: Array) -> set[str]:
    facts = map(state.account_fact, slots.tolist())
    return {fact["site_id"] for fact in facts if fact is not None}


def _policy_fact(out: Outbox, fact: Fact) -> None:
    state = out.state
    entity = f"policies/{fact['policy_id']}"
    if _is_old(out, entity, fact):
        return
    _keep(out, entity, fact)
    policy = state.policies.put(fact)
    count = state.account_count
    state.link_read(np.arange(count))
    links, accounts = state.account_links[:count], state.accounts[:count]
    slots = np.flatnonzero((links["policy"] == policy) & (accounts["offset"] < out.offset))
    slots = slots[np.argsort(accounts["key"][slots])]
    judge(out, slots, lambda _: Cause())


def _account_fact(out: Outbox, fact: Fact) -> None:
    state = out.state
    entity = account_entity(fact["account_key"])
    if fact["shard"] != state.shard or _is_old(out, entity, fact):
        return
    slot = state.account_slot(fact["account_key"])
    if slot is not None and state.is_ahead(slot, out.offset):
        if state.facts.stood(entity, out.offset):
            _keep(out, entity, fact)
            state.link_account(slot, fact)
        return
    if slot is None:
        slot = state.add_account(fact["account_key"], house=False)
    post_fees(out, np.array([slot]))
    if not _can_stand(state, slot, fact):
        freeze(out, slot, Cause(identity=fact))
        return
    thaws = _thaws(state, slot, entity, fact)
    _keep(out, entity, fact)
    if state.accounts["known"][slot] and state.is_other_tariff(slot, fact):
        state.forget_shapes(slot)
        state.accounts["fees_until_ms"][slot] = state.now_ms
    state.link_account(slot, fact)
    _set_account(out, slot, fact, thaws=thaws)


def _thaws(state: ShardState, slot: int, entity: str, fact: Fact) -> bool:
    """Say whether a person orders by the fact that a frozen account be charged again."""
    known = state.facts.newest(entity) or {}
    is_news = fact["thaw_id"] not in (None, known.get("thaw_id"))
    return is_news and bool(state.accounts["frozen"][slot])


def _can_stand(state: ShardState, slot: int, fact: Fact) -> bool:
    """Say whether the account could be judged by the fact."""
    account = state.accounts[slot]
    available = fact["credited_nano"] - int(account["charged_nano"]) - fact["held_nano"]
    judged = fact["status"] != "closed" and not account["house"]
    policy = state.policies.rows[state.policies.slot(fact["policy_id"])]
    fits = all(map(fits_int64, (fact["credited_nano"], fact["held_nano"], available)))
    return fits and (bool(policy["present"]) or not judged)


def _set_account(out: Outbox, slot: int, fact: Fact, *, thaws: bool) -> None:
    account, slots = out.state.accounts[slot], np.array([slot])
    if account["credited_nano"] != fact["credited_nano"]:
        account["sequence"] += 1
    if not account["known"]:
        account["known"] = True
        account["since_ms"] = out.state.now_ms
        account["fees_until_ms"] = out.state.now_ms - 1
    account["closed"] = fact["status"] == "closed"
    account["revision"] = fact["revision"]
    account["book_epoch"] = fact["book_epoch"]
    account["credited_nano"] = fact["credited_nano"]
    account["held_nano"] = fact["held_nano"]
    out.touch(slots)
    if thaws:
        thaw(out, slot)
    judge(out, slots, lambda _: Cause())
    if account["closed"]:
        end_refusal(out, slot, Cause())
    if not account["house"]:
        out.publish(slots)
    set_due(out, slots)
    post_fees(out, slots)
    if (hold_id := fact["hold_id"]) is not None:
        hold = np.void(name_uuid("hold", hold_id).bytes)
        if out.state.accounts["echoed"][slot] != hold:
            out.state.accounts["echoed"][slot] = hold
            out.echo(slot, hold_id=hold_id)


def _usage_ask(out: Outbox, ask: Fact) -> None:
    """Answer what an account was charged. Nothing of it changes, so no row is written."""
    slot = out.state.account_slot(ask["account_key"])
    if slot is None or not out.state.accounts["known"][slot]:
        out.count("ask-unknown")
    elif not out.state.is_ahead(slot, out.offset):
        out.echo(slot, ask_id=ask["ask_id"])


def _meter_fact(out: Outbox, fact: Fact) -> None:
    state = out.state
    leaves, enters = fact["previous_shard"] == state.shard, fact["shard"] == state.shard
    entity = meter_entity(fact["meter_key"])
    known = state.facts.newest(entity)
    if not (leaves or enters or known) or _is_old(out, entity, fact):
        return
    before = known or fact
    stay = _leave(out, fact, before) if leaves else None
    _keep(out, entity, fact)
    if enters:
        _enter(out, fact, before, stay)
    else:
        _stand_nowhere(out, before)


def _leave(out: Outbox, fact: Fact, before: Fact) -> Stay | None:
    """Close the meter in the account it leaves. `before`: the meter's fact until now.

    Return what goes on where it enters the same account again.
    """
    state, waiting = out.state, None
    slot = state.account_slot(fact["previous_account_key"])
    if slot is None or state.is_ahead(slot, out.offset):
        return None
    meter_slot = state.meter_in(slot, fact["meter_key"])
    if meter_slot is None or state.meters["epoch"][meter_slot] != fact["previous_epoch"]:
        return None
    tell_leaving(out, slot, meter_slot, before)
    cause, meters = Cause(meter=before), state.meters[[meter_slot]]
    if meters["opened"][0] and not state.accounts["frozen"][slot]:
        if must_wait(meters[0], fact, out.now_ms):
            waiting = let_wait(out, slot, meters, fact, cause)
        else:
            closing_milli = fact["closing_register_milli"]
            charge = close_meter(out, slot, meter_slot, closing_milli, cause)
            if charge is None:
                freeze(out, slot, cause)
            cause = replace(cause, charge=charge)
    stays = (fact["account_key"], fact["shard"]) == (fact["previous_account_key"], state.shard)
    state.remove_meter(meter_slot, stays=stays)
    slots = np.array([slot])
    out.touch(slots)
    judge(out, slots, lambda _: cause)
    return Stay(int(meters["since_ms"][0]), waiting) if stays else None


def _enter(out: Outbox, fact: Fact, before: Fact, stay: Stay | None) -> None:
    """Let the meter stand in its account at its new epoch. `before`: its fact until now.

    `stay`: what goes on from its epoch before, in the same account.
    A fact of the epoch at which it stands there already says only what the meter is.
    """
    state = out.state
    slot = state.account_slot(fact["account_key"])
    if slot is None:
        slot = state.add_account(fact["account_key"], house=fact["is_house"])
    elif state.is_ahead(slot, out.offset):
        _stand_nowhere(out, before, but_in=slot)
        state.replay_entering(slot, fact)
        return
    standing = state.meter_in(slot, fact["meter_key"])
    if standing is not None and state.meters["epoch"][standing] == fact["epoch"]:
        forced = state.meters["forced"][standing].item()
        resolved = resolve(out, slot, standing, fact) and resolve_closing(out, slot, standing, fact)
        if resolved:
            state.describe_meter(standing, fact)
        out.touch(np.array([slot]))
        if state.meters["forced"][standing] != forced:
            obey(out, slot, standing, Cause(identity=fact))
        return
    _stand_nowhere(out, before)
    account = state.accounts[slot]
    if account["meters"] >= METERS_MAX or fact["ratio"] < 1:
        freeze(out, slot, Cause(identity=fact, meter=fact))
        return
    if account["house"] and account["frozen"]:  # of which no account-fact could order that
        thaw(out, slot)
    meter_slot, slots = state.add_meter(slot, fact, out.offset, stay), np.array([slot])
    out.touch(slots)
    if state.meters["forced"][meter_slot]:
        obey(out, slot, meter_slot, Cause(identity=fact))
    elif not account["house"] and account["level"] != CUT:
        close(out, slot, meter_slot, "assigned", Cause(identity=fact))
    judge(out, slots, lambda _: Cause())


def _stand_nowhere(out: Outbox, before: Fact, *, but_in: int = -1) -> None:
    """Let a meter stand in no account (but one): its leaving another may have been missed.

    `before`: the fact by which it stands, if it does.
    """
    state = out.state
    meter_slot = int(state.standing.find(np.array([before["meter_key"]]))[0])
    if meter_slot < 0 or state.meter_links["account"][meter_slot] == but_in:
        return
    slot = int(state.meter_links["account"][meter_slot])
    out.touch(np.array([slot]))
    tell_leaving(out, slot, meter_slot, before)
    state.remove_meter(meter_slot, stays=False)


def _wake(out: Outbox, _: Fact) -> None:
    state = out.state
    count = state.account_count
    post_fees(out, np.arange(count))
    due = state.due_ms[:count] <= state.now_ms
    slots = np.flatnonzero(due & (state.accounts["offset"][:count] < out.offset))
    if len(slots):
        out.publish(slots)
    for meter_slot in state.silent_meters(out.offset):
        tell_silence(out, meter_slot)


def _is_old(out: Outbox, entity: str, fact: Fact) -> bool:
    old = out.state.facts.is_old(entity, fact)
    if old:
        out.count("fact-old")
    return old


def _keep(out: Outbox, entity: str, fact: Fact) -> None:
    out.fact_rows.append(out.state.facts.put(entity, out.offset, fact))


_FACTS = {
    "site-fact": _site_fact,
    "tariff-fact": _tariff_fact,
    "policy-fact": _policy_fact,
    "account-fact": _account_fact,
    "meter-fact": _meter_fact,
    "usage-ask": _usage_ask,
    "wake": _wake,
}
