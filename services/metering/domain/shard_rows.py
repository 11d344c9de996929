"""A shard as rows of the table, and a shard made again of them."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import numpy as np

from services.metering.domain.accumulations import Accumulations
from services.metering.domain.components import Components
from services.metering.domain.facts import Array
from services.metering.domain.keys import NO_SLOT, Standing
from services.metering.domain.messages import Row, Rows, RowTable
from services.metering.domain.rows import (
    ABSORB_VERSION,
    ACCOUNT_PREFIX,
    FACT_PREFIX,
    HEADER_KEY,
    LAYOUT_VERSION,
    WITH_RATES,
    ParsedAccounts,
    account_row_keys,
    check_drained,
    header_of,
    joined,
    octets,
    parsed_accounts,
    sizes_of_tails,
    words,
)
from services.metering.domain.shard import ShardState
from services.metering.domain.tails import Tails
from services.metering.domain.windows import Windows

_TAILS_END = 1 << 32
"""Shape of an account's row: how many accumulations × _TAILS_END + how many bytes of tails behind
them, which are words, + _DIVIDED where it has components."""
_DIVIDED = 1


def rows_of(state: ShardState) -> tuple[list[Row], list[Row], Row]:
    """Return (fact rows, account rows, header row): everything, to be written anew."""
    slots = np.arange(state.account_count)
    return list(state.facts.rows()), list(account_rows(state, slots)), state.header_row()


def account_rows(state: ShardState, slots: Array) -> Rows:
    """Return the rows of accounts, in the order of `slots`."""
    counts = state.accounts["meters"][slots]
    tables: list[RowTable] = []
    for count in np.unique(counts).tolist():
        places = np.flatnonzero(counts == count)
        tables += _tables(state, places, slots[places], count)
    return Rows(tables)


def _tables(state: ShardState, places: Array, slots: Array, count: int) -> Iterator[RowTable]:
    """Yield the rows of accounts with so many meters each, together those of one shape."""
    if count == 1:
        meter_slots = state.account_links["only_meter"][slots]
    else:
        of_each = chain.from_iterable(map(state.meters_of, slots.tolist()))
        meter_slots = np.fromiter(of_each, np.int64)
    if not (state.accumulations or state.windows or state.tails or state.components):
        yield _table(state, 0, places, slots, meter_slots.reshape(len(slots), count))
        return
    tails = sizes_of_tails(state.meters, meter_slots).sum(axis=0)
    shapes = state.accounts["accumulations"][slots] * np.int64(_TAILS_END)
    shapes += tails.reshape(len(slots), count).sum(axis=1)
    shapes += state.components.nano.take(slots, axis=0).any(axis=1) * _DIVIDED
    meter_slots = meter_slots.reshape(len(slots), count)
    for shape in sorted(set(shapes.tolist())):
        which = np.flatnonzero(shapes == shape)
        yield _table(state, shape, places[which], slots[which], meter_slots[which])


def _table(
    state: ShardState, shape: int, places: Array, slots: Array, meter_slots: Array
) -> RowTable:
    """Return the rows of accounts of one shape; `meter_slots`: of each, a line an account."""
    keys = account_row_keys(state.accounts["key"][slots])
    accounts, meters = words(state.accounts), words(state.meters)
    counted = meters.take(meter_slots.ravel(), axis=0)
    parts = [accounts.take(slots, axis=0), counted.reshape(len(slots), -1)]
    if shape // _TAILS_END:
        firsts = state.account_links["first_accumulation"][slots]
        at = state.accumulations.of_each(firsts, shape // _TAILS_END)
        counted = words(state.accumulations.entries).take(at, axis=0)
        parts.append(counted.reshape(len(slots), -1))
    if shape % _TAILS_END > _DIVIDED:
        tails = _tails_of(state, meter_slots.ravel())
        parts.append(tails.reshape(len(slots), -1))
    if shape & _DIVIDED:
        parts.append(state.components.nano.take(slots, axis=0))
    return RowTable(places, keys, octets(np.concatenate(parts, axis=1)))


def _tails_of(state: ShardState, meter_slots: Array) -> Array:
    """Return windows and tails of meters as rows have them, one meter's behind the other's."""
    said = state.meters["windows"].take(meter_slots)
    others = sizes_of_tails(state.meters, meter_slots)[1:]
    if not (others.any() or (said & WITH_RATES).any()):
        return state.windows.flat(meter_slots, said)
    each = zip(meter_slots.tolist(), said.tolist(), strict=True)
    return np.frombuffer(b"".join([_tail(state, *meter) for meter in each]), np.int64)


def _tail(state: ShardState, meter_slot: int, said: int) -> bytes:
    windows = state.windows.packed(meter_slot, said)
    return b"".join([windows, *state.tails.packed(meter_slot)])


def shard_of_rows(shard: int, rows: Iterable[tuple[bytes, bytes]]) -> ShardState:
    """Return the shard that `rows` describe: any versions of each row, in any order.

    Raises BadRows where this version cannot stand on them.
    """
    return shard_of_newest(shard, joined(rows))


def shard_of_newest(shard: int, newest: Mapping[bytes, bytes]) -> ShardState:
    """Return the shard that `newest` describes: what `joined` makes of its rows.

    Raises BadRows where this version cannot stand on them.
    """
    state = ShardState(shard)
    if header := newest.get(HEADER_KEY):
        state.offset, state.now_ms = header_of(header)
    check_drained(newest.values(), state.offset)
    parsed = parsed_accounts(
        [value for key, value in newest.items() if key.startswith(ACCOUNT_PREFIX)]
    )
    _load_accounts(state, parsed)
    _load_meters(state, parsed)
    _load_accumulations(state, parsed)
    facts = (pair for pair in newest.items() if pair[0].startswith(FACT_PREFIX))
    _load_facts(state, ((key.removeprefix(FACT_PREFIX).decode(), value) for key, value in facts))
    return state


def _load_accounts(state: ShardState, parsed: ParsedAccounts) -> None:
    count = len(parsed.accounts)
    slots = np.arange(count)
    state.account_keys.extend(parsed.accounts["key"])
    state.make_room(count, len(parsed.meters))
    state.components = Components.of_all(parsed.components)
    state.put_accounts(slots, parsed.accounts)
    state.accounts["layout"][slots] = LAYOUT_VERSION
    state.accounts["absorb"][slots] = ABSORB_VERSION


def _load_meters(state: ShardState, parsed: ParsedAccounts) -> None:
    accounts, meters = parsed.accounts, parsed.meters
    slots = np.arange(len(meters))
    state.meter_slots_used = len(meters)
    state.put_meters(slots, meters)
    state.windows = Windows.of_all(meters["windows"], parsed.windows)
    state.tails = Tails.of_all(parsed.held, parsed.waiting, parsed.habits, parsed.stands)
    ends = np.cumsum(accounts["meters"], dtype=np.int64)
    starts = ends - accounts["meters"]
    only = np.where(accounts["meters"] == 1, starts, NO_SLOT)
    state.account_links["only_meter"][: len(accounts)] = only
    state.meter_links["account"][slots] = np.repeat(np.arange(len(accounts)), accounts["meters"])
    for slot in np.flatnonzero(accounts["meters"] > 1).tolist():
        state.put_meters_of(slot, list(range(int(starts[slot]), int(ends[slot]))))
    # Where a meter stands in two accounts, one row is older than the other. At the header's
    # offset it stands where it had entered last; later stands are found when replay is there.
    standing = np.flatnonzero(meters["entered_offset"] <= state.offset)
    order = standing[np.argsort(meters["entered_offset"][standing], kind="stable")]
    state.standing = Standing.of_all(meters["key"][order], order)


def _load_accumulations(state: ShardState, parsed: ParsedAccounts) -> None:
    """Link chains, and let the newest accumulation of each owner be found: its last in the row."""
    counts = parsed.accounts["accumulations"].astype(np.int64)
    state.accumulations = Accumulations.of_all(parsed.accumulations, counts)
    begins = np.where(counts, np.cumsum(counts) - counts, NO_SLOT)
    state.account_links["first_accumulation"][: len(counts)] = begins
    state.account_links["accumulation"][: len(counts)] = NO_SLOT
    state.meter_links["accumulation"][: len(parsed.meters)] = NO_SLOT
    accounts = np.repeat(np.arange(len(counts)), counts)
    owners = parsed.accumulations["owner"]
    others = (owners[1:] != owners[:-1]) | (accounts[1:] != accounts[:-1])
    newest = np.flatnonzero(np.append(others, True)[: len(owners)])
    of_accounts = newest[owners[newest] == 0]
    state.account_links["accumulation"][accounts[of_accounts]] = of_accounts
    of_meters = newest[owners[newest] != 0]
    meter_slots = state.standing.find(owners[of_meters])
    here = state.meter_links["account"][meter_slots] == accounts[of_meters]
    here &= meter_slots != NO_SLOT
    state.meter_links["accumulation"][meter_slots[here]] = of_meters[here]


def _load_facts(state: ShardState, values: Iterable[tuple[str, bytes]]) -> None:
    state.facts.load(values, state.offset)
    for fact in state.facts.told("tariffs"):
        state.tariffs.put(fact)
    for fact in state.facts.told("policies"):
        state.policies.put(fact)
    state.link_later(state.facts.accounts.keys.all())
