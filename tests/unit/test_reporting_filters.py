"""Filters in SQL let through what they let through in Python: SQLite is asked.

Random trees over random rows, among them rows without a value, which equal nothing and have no
order.
"""

import re
import sqlite3
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.filters import OPERATORS, All, AnyOf, Filter, Match, Not, Value
from services.reporting.adapters.filters import where

COLUMNS = {"level": "text_1", "at_ms": "number_1"}
WORDS = ("cut", "normal")

MATCHES = st.one_of(
    st.builds(Match, st.just("level"), st.sampled_from(["=", "!="]), st.sampled_from(WORDS)),
    st.builds(Match, st.just("at_ms"), st.sampled_from(sorted(OPERATORS)), st.integers(0, 3)),
)


def _groups(parts: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(parts, max_size=3).map(tuple)
    return st.one_of(
        st.builds(All, several),
        st.builds(AnyOf, st.lists(parts, min_size=1, max_size=3).map(tuple)),
        st.builds(Not, parts),
    )


TREES: st.SearchStrategy[Filter] = st.recursive(MATCHES, _groups, max_leaves=8)
ROWS = st.lists(
    st.tuples(st.none() | st.sampled_from(WORDS), st.none() | st.integers(0, 3)), max_size=6
)


def holds(of: Filter, row: dict[str, Value | None]) -> bool:
    match of:
        case Match(field, sign, value):
            there = row[field]
            return sign == "!=" if there is None else OPERATORS[sign](there, value)
        case All(parts):
            return all(holds(part, row) for part in parts)
        case AnyOf(parts):
            return any(holds(part, row) for part in parts)
        case Not(part):
            return not holds(part, row)


@given(TREES, ROWS)
def test_a_filter_in_sql_lets_through_what_it_says(tree: Filter, rows: list[Any]) -> None:
    values: list[Any] = []
    condition = where(tree, COLUMNS, values)
    book = sqlite3.connect(":memory:")
    try:
        book.execute("CREATE TABLE listed(text_1 text, number_1 bigint)")
        book.executemany("INSERT INTO listed VALUES(?, ?)", rows)
        found = book.execute(
            f"SELECT text_1, number_1 FROM listed WHERE {re.sub(r'[$](?=[0-9])', '?', condition)}",
            values,
        ).fetchall()
    finally:
        book.close()
    key = str
    expected = [row for row in rows if holds(tree, dict(zip(COLUMNS, row, strict=True)))]
    assert sorted(found, key=key) == sorted(expected, key=key)
