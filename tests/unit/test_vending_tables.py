"""Goal: a table beside the events is never forgotten where the tables are made anew.

Method: every table of the schema is told of here, by where its rows come from.
"""

import re

from services.vending.adapters.table_copy import FROM_KAFKA, KEYS, NOT_COPIED
from services.vending.adapters.tables import DERIVED, SCHEMA

BY_THE_RELAY = ("checkpoint", "link")
"""What it vouched for: indexed_store._emptied says what becomes of them."""
BY_A_PERSON = ("book", "raised", "unfinished_copy")
OF_EARLIER_RELEASES = ("root",)
OF_THE_STORE = ("made",)


def test_of_every_table_it_is_said_where_its_rows_come_from() -> None:
    tables = re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", SCHEMA)
    told = [*DERIVED, *FROM_KAFKA, *BY_THE_RELAY, *BY_A_PERSON, *OF_EARLIER_RELEASES, *OF_THE_STORE]
    assert sorted(tables) == sorted(told)
    assert sorted(tables) == sorted([*KEYS, *NOT_COPIED])
