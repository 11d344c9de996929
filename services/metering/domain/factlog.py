"""What the book says, as the shard knows it: the newest fact of each entity."""

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import orjson

from services.metering.domain.facts import Array
from services.metering.domain.keys import Keys
from services.metering.domain.messages import Row
from services.metering.domain.rows import (
    PIPELINE_RECORDS_MAX,
    Fact,
    Versions,
    absorbed_offset,
    account_entity,
    fact_row,
    meter_entity,
    newest_of,
    versions_of,
)

_OF_ACCOUNTS = (
    *("account_id", "site_id", "legal_entity", "revision", "credited_nano", "held_nano"),
    *("subject_id", "hold_id", "notice_id", "keep_power_until_ms", "promise_until_ms", "thaw_id"),
)
_OF_METERS = (
    *("meter_id", "serial", "account_id", "account_key", "site_id", "legal_entity"),
    *("gateway_id", "line_id", "unit", "revision", "opening_register_milli"),
    *("closing_register_milli", "previous_account_id", "previous_account_key"),
    "resolves_reading_id",
)
"""Fields whose values hardly two facts have in common, those last that are null in most."""

_IN_BLOCK = 16
"""Facts in one bytes object: one for each would take half as much again as what is in it."""
_END = b"\n"
"""Between the facts of a block: JSON has none."""

_Packed = tuple[Any, ...]
"""(number of a form, offset absorbed, own values up to the last that is not null)."""
_OWN_FROM = 2
_NOWHERE = 1 << 30


class _Form(NamedTuple):
    """What many facts have in common: `common` has all fields, null where each has its own."""

    common: Fact
    own: tuple[str, ...]

    def places(self, fields: Iterable[str]) -> list[tuple[int, Any]]:
        """Return where in what is packed each field stands, and its value where nothing does."""
        places = {field: _OWN_FROM + number for number, field in enumerate(self.own)}
        return [(places.get(field, _NOWHERE), self.common[field]) for field in fields]


class _Shape:
    """Facts of the same fields: how to part what each has of its own from what it shares."""

    def __init__(self, fields: tuple[str, ...], own: Sequence[str], key: str) -> None:
        self.own = tuple(field for field in own if field in fields)
        shared = [field for field in fields if field not in self.own and field != key]
        assert len(self.own) > 1 < len(shared), "itemgetter gives tuples of two and more"
        self.own_of = itemgetter(*self.own)
        self.shared_of = itemgetter(*shared)
        self.forms: dict[tuple[Any, ...], int] = {}


class PackedFacts:
    """Versions of the facts of accounts, or of meters, by key.

    There are as many as meters, and as dicts they would take far more than all else that is known
    of those. A fact is packed as the number of its form and its own values, and made anew when it
    is asked for. It comes back as it was, whatever its fields; `own` says what is packed well.
    Rows that were read at a start are packed when they are asked for, or bit by bit, for a start
    has no time.
    """

    def __init__(self, key: str, own: Sequence[str]) -> None:
        self._key = key
        self._own = own
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._forms: list[_Form] = []
        self._blocks: list[bytes] = []
        """By number // _IN_BLOCK: what is packed of so many entities; nothing of others."""
        self._rows: dict[int, bytes] = {}
        """Values of rows, by number: what is not packed yet."""
        self._read: dict[int, Fact] = {}
        """What was read of rows when values were last asked for: who links asks again at once."""
        self.keys = Keys()

    @property
    def unpacked_count(self) -> int:
        return len(self._rows)

    def newest(self, key: int) -> Fact | None:
        number = self.keys.number(key)
        return None if number < 0 else self._fact(key, self._versions(number)[-1])

    def newest_values(self, keys: Array, fields: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        """Yield these fields, not its key, of the newest fact of each key; all keys are known.

        Without making whole facts, or packing any: a full frame asks for five hundred.
        """
        of_fact = itemgetter(*fields)
        of_form: dict[int, list[tuple[int, Any]]] = {}
        read, self._read = self._read, {}
        for number in self.keys.numbers(keys).tolist():
            if value := self._rows.get(number):
                fact = self._read[number] = read.get(number) or newest_of(value)
                yield of_fact(fact)
                continue
            packed = self._packed(number)[-1]
            places = of_form.get(packed[0])
            if places is None:
                places = of_form[packed[0]] = self._forms[packed[0]].places(fields)
            count = len(packed)  # the rest is null
            yield tuple([packed[at] if at < count else common for at, common in places])

    def versions(self, key: int) -> Versions:
        number = self.keys.number(key)
        if number < 0:
            return ()
        return tuple((packed[1], self._fact(key, packed)) for packed in self._versions(number))

    def put(self, key: int, versions: Versions) -> None:
        """Let `versions` be those of an entity."""
        number = self.keys.number(key)
        if number < 0:
            number = self.keys.add(key)
            self._make_room()
        self._rows.pop(number, None)
        self._put(number, versions)

    def load(self, keys: Sequence[int], values: Sequence[bytes]) -> None:
        """Take the values of rows, each of another key, none of which is known."""
        first = len(self.keys)
        self.keys.extend(np.array(keys, np.int64))
        self._make_room()
        self._rows |= zip(range(first, len(self.keys)), values, strict=True)

    def pack(self, count: int) -> int:
        """Pack what was loaded, up to `count` rows; return how many it was."""
        count = min(count, len(self._rows))
        for _ in range(count):
            number, value = self._rows.popitem()
            self._put(number, versions_of(value))
        if count and not self._rows:
            self._rows = {}  # a dict keeps the room of what it held
        return count

    def _put(self, number: int, versions: Versions) -> None:
        packed = orjson.dumps([self._packed_of(at, fact) for at, fact in versions])[1:-1]
        block, place = divmod(number, _IN_BLOCK)
        facts = self._blocks[block].split(_END)
        facts[place] = packed
        self._blocks[block] = _END.join(facts)

    def _make_room(self) -> None:
        """Have a block for every number."""
        missing = -(-len(self.keys) // _IN_BLOCK) - len(self._blocks)
        self._blocks += [_END * (_IN_BLOCK - 1)] * missing

    def _versions(self, number: int) -> list[_Packed]:
        if value := self._rows.pop(number, None):
            self._put(number, versions_of(value))
        return self._packed(number)

    def _packed(self, number: int) -> list[_Packed]:
        block, place = divmod(number, _IN_BLOCK)
        packed = self._blocks[block].split(_END)[place]
        versions: list[_Packed] = orjson.loads(b"[%b]" % packed)
        return versions

    def _packed_of(self, at: int, fact: Fact) -> _Packed:
        fields = tuple(fact)
        shape = self._shapes.get(fields)
        if shape is None:
            shape = self._shapes[fields] = _Shape(fields, self._own, self._key)
        form = shape.forms.setdefault(shape.shared_of(fact), len(self._forms))
        if form == len(self._forms):
            self._forms.append(_Form(fact | dict.fromkeys(shape.own), shape.own))
        own = shape.own_of(fact)
        count = len(own)
        while count and own[count - 1] is None:
            count -= 1
        return form, at, *own[:count]

    def _fact(self, key: int, packed: _Packed) -> Fact:
        form = self._forms[packed[0]]
        fact = form.common.copy()
        fact.update(zip(form.own, packed[_OWN_FROM:], strict=False))  # the rest is null
        fact[self._key] = key
        return fact


class FactLog:
    """The newest fact of each entity, with the versions that a restart could still need."""

    def __init__(self) -> None:
        self.accounts = PackedFacts("account_key", _OF_ACCOUNTS)
        self.meters = PackedFacts("meter_key", _OF_METERS)
        self._by_key = {"accounts": self.accounts, "meters": self.meters}
        self._others: dict[str, Versions] = {}
        self._ahead: set[tuple[str, int]] = set()

    def newest(self, entity: str) -> Fact | None:
        versions = self._versions(entity)
        return versions[-1][1] if versions else None

    def is_old(self, entity: str, fact: Fact) -> bool:
        """Say whether a fact at least as new is known, by (book_epoch, revision)."""
        known = self.newest(entity)
        return known is not None and _version(fact) <= _version(known)

    def put(self, entity: str, offset: int, fact: Fact) -> Row:
        """Keep a newer fact; return its row."""
        versions = (*self._versions(entity), (offset, fact))
        oldest = offset - PIPELINE_RECORDS_MAX
        outlived = sum(at <= oldest for at, _ in versions)
        kept = versions[max(outlived - 1, 0) :]
        self._keep(entity, kept)
        return fact_row(entity, kept)

    def load(self, values: Iterable[tuple[str, bytes]], header_offset: int) -> None:
        """Take (entity, value) of rows: versions up to the header, the log brings the later ones.

        Of an empty log, and each entity once.
        """
        keys: dict[str, list[int]] = {kind: [] for kind in self._by_key}
        rows: dict[str, list[bytes]] = {kind: [] for kind in self._by_key}
        for entity, value in values:
            kept = value
            if absorbed_offset(value) > header_offset:
                versions = versions_of(value)
                self._ahead.update((entity, at) for at, _ in versions if at > header_offset)
                stood = tuple(version for version in versions if version[0] <= header_offset)
                if not stood:
                    continue
                kept = fact_row(entity, stood).value
            kind, _, name = entity.partition("/")
            if kind in keys:
                keys[kind].append(int(name))
                rows[kind].append(kept)
            else:
                self._others[entity] = versions_of(kept)
        for kind, facts in self._by_key.items():
            facts.load(keys[kind], rows[kind])

    @property
    def unpacked_count(self) -> int:
        return sum(facts.unpacked_count for facts in self._by_key.values())

    def pack(self, count: int) -> int:
        """Pack what was loaded, up to `count` facts; return how many it was."""
        packed = self.accounts.pack(count)
        return packed + self.meters.pack(count - packed)

    def told(self, kind: str) -> Iterator[Fact]:
        """Yield the newest facts of a kind: tariffs, policies, sites."""
        for entity, versions in self._others.items():
            if entity.startswith(f"{kind}/"):
                yield versions[-1][1]

    def stood(self, entity: str, offset: int) -> bool:
        """Say whether the fact at an offset ahead of the header stood before the restart.

        For accounts whose rows are ahead too: their fact rows were written before those.
        """
        return (entity, offset) in self._ahead

    def rows(self) -> Iterator[Row]:
        entities = [
            *self._others,
            *map(account_entity, self.accounts.keys.all().tolist()),
            *map(meter_entity, self.meters.keys.all().tolist()),
        ]
        return (fact_row(entity, self._versions(entity)) for entity in entities)

    def _versions(self, entity: str) -> Versions:
        kind, _, name = entity.partition("/")
        facts = self._by_key.get(kind)
        return self._others.get(entity, ()) if facts is None else facts.versions(int(name))

    def _keep(self, entity: str, versions: Versions) -> None:
        kind, _, name = entity.partition("/")
        facts = self._by_key.get(kind)
        if facts is None:
            self._others[entity] = versions
        else:
            facts.put(int(name), versions)


def _version(fact: Fact) -> tuple[int, int]:
    return fact["book_epoch"], fact["revision"]
