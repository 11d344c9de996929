"""What metering knows of a million meters is packed, and nobody can tell.

Method: a table of keys is held against a dict, with keys made to collide; packed facts against the
facts themselves, told, replaced, loaded from rows and packed in any order.
"""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.units import INT64_MAX, INT64_MIN
from services.metering.domain.factlog import FactLog, PackedFacts
from services.metering.domain.facts import grown
from services.metering.domain.keys import SPREAD, Keys
from services.metering.domain.rows import Versions, account_entity, fact_row
from tests.property.metering_runs import examples
from tests.unit.metering_log import account

_WORD = 1 << 64
_UNSPREAD = pow(SPREAD, -1, _WORD)


def colliding(spread: int) -> int:
    """Return the key whose home is told by the highest bits of `spread`: neighbours share it."""
    key = spread * _UNSPREAD % _WORD
    return key - _WORD if key > INT64_MAX else key


_KEYS = st.one_of(
    st.integers(INT64_MIN, INT64_MAX),
    st.integers(-5, 5),
    st.integers(0, 40).map(colliding),
    st.integers(1, 40).map(lambda back: colliding(_WORD - back)),  # from the last cell on
)


@examples(200)
@given(
    st.lists(_KEYS, unique=True, max_size=60),
    st.lists(_KEYS, unique=True, max_size=60),
    st.lists(_KEYS, max_size=40),
)
def test_keys_have_the_numbers_that_a_dict_gives_them(
    first: list[int], later: list[int], asked: list[int]
) -> None:
    keys, numbers = Keys(), {key: number for number, key in enumerate(first)}
    keys.extend(np.array(first, np.int64))
    for key in later:
        if key not in numbers:
            numbers[key] = keys.add(key)
            assert numbers[key] == len(numbers) - 1
    more = [key for key in map(colliding, range(100, 140)) if key not in numbers]
    keys.extend(np.array(more, np.int64))
    numbers |= zip(more, range(len(numbers), len(numbers) + len(more)), strict=True)
    asked += [*numbers, *asked]
    wanted = [numbers.get(key, -1) for key in asked]
    assert keys.numbers(np.array(asked, np.int64)).tolist() == wanted
    assert [keys.number(key) for key in asked] == wanted
    assert keys.numbers(np.array(asked[:3], np.int64)).tolist() == wanted[:3]
    assert keys.all().tolist() == list(numbers)


@examples(50)
@given(st.integers(1, 400), st.integers(0, 2**32))
def test_a_table_that_grows_key_by_key_finds_them_all(count: int, seed: int) -> None:
    some = np.unique(np.random.default_rng(seed).integers(INT64_MIN, INT64_MAX, count))
    keys = Keys()
    assert [keys.add(key) for key in some.tolist()] == list(range(len(some)))
    assert keys.numbers(some).tolist() == list(range(len(some)))


def test_what_grows_keeps_what_it_has_and_is_zero_behind() -> None:
    assert grown(np.arange(3), 4).tolist() == [0, 1, 2, 0, 0, 0]
    assert grown(np.arange(3), 9).tolist() == [0, 1, 2, *[0] * 6]


_VALUES = st.one_of(
    st.none(), st.integers(INT64_MIN, INT64_MAX), st.text(max_size=5), st.sampled_from(["A", "B"])
)
_SHARED = {"status": _VALUES, "currency": _VALUES, "shard": st.integers(0, 2)}
_OWN = {"account_id": _VALUES, "revision": _VALUES, "hold_id": _VALUES, "notice_id": _VALUES}
_FACTS = st.fixed_dictionaries(
    {"book_epoch": st.integers(0, 2), "tariff_id": _VALUES, "site_id": _VALUES, **_SHARED, **_OWN},
    optional={"promise_until_ms": _VALUES, "not thought of": _VALUES},
)
_VERSIONS = st.lists(st.tuples(st.integers(0, 9), _FACTS), min_size=1, max_size=3).map(tuple)
_OPS = st.lists(
    st.tuples(st.sampled_from(["put", "pack", "ask", "values"]), st.integers(0, 7), _VERSIONS)
)


@examples(200)
@given(st.lists(_VERSIONS, max_size=8), _OPS)
def test_a_packed_fact_comes_back_as_it_was(
    loaded: list[Versions], ops: list[tuple[str, int, Versions]]
) -> None:
    own = ("account_id", "site_id", "revision", "hold_id", "notice_id", "promise_until_ms")
    facts = PackedFacts("account_key", own)
    known = {key: _keyed(key, versions) for key, versions in enumerate(loaded)}
    values = [fact_row(account_entity(key), versions).value for key, versions in known.items()]
    facts.load(list(known), values)
    for what, key, versions in ops:
        if what == "put":
            known[key] = _keyed(key, versions)
            facts.put(key, known[key])
        elif what == "pack":
            facts.pack(key)
        elif what == "values":
            check_values(facts, known)
        else:
            assert facts.versions(key) == known.get(key, ())
    assert facts.pack(100) <= len(loaded)
    assert facts.pack(100) == 0
    for key in range(9):
        versions = known.get(key, ())
        assert facts.versions(key) == versions
        assert facts.newest(key) == (versions[-1][1] if versions else None)
    check_values(facts, known)


def check_values(facts: PackedFacts, known: dict[int, Versions]) -> None:
    """Fail where asking for some fields of many facts gives other values, or packs anything."""
    fields = ("tariff_id", "site_id", "account_id", "notice_id", "shard")
    keys, unpacked = [*known, *known], facts.unpacked_count
    found = list(facts.newest_values(np.array(keys, np.int64), fields))
    assert found == [tuple(known[key][-1][1][field] for field in fields) for key in keys]
    assert facts.unpacked_count == unpacked


def _keyed(key: int, versions: Versions) -> Versions:
    return tuple((at, {**fact, "account_key": key}) for at, fact in versions)


def test_facts_alike_but_for_what_is_their_own_share_a_form() -> None:
    """Else memory grows by a form a fact: the ids, figures and orders of an account are its own."""
    log = FactLog()
    orders: dict[str, Any] = {"hold_id": "h", "keep_power_until_ms": 5, "promise_until_ms": None}
    for number in range(50):
        fact = account(f"A{number}", credited_nano=number, revision=number, subject_id=f"s{number}")
        fact |= orders if number % 2 else {}
        fact |= {"notice_id": f"n{number}", "notice_outcome": "delivered"} if number % 5 else {}
        log.put(account_entity(fact["account_key"]), number, fact)
    assert len(log.accounts._forms) == 2, "one with a notice's outcome, one without"
