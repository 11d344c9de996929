"""Filters of lists (services.common.kernel.filters) as conditions of SQL."""

from collections.abc import Mapping
from typing import Any

from services.common.kernel.filters import Filter, Match, joined


def where(of: Filter, columns: Mapping[str, str], values: list[Any]) -> str:
    """Return a condition; what it compares with is appended to `values`, as $1, $2, ...

    `columns`: field → what it is in SQL. What is NULL equals nothing, and has no order.
    """

    def compared(match: Match) -> str:
        values.append(match.value)
        comparison = "IS DISTINCT FROM" if match.operator == "!=" else match.operator
        return f"{columns[match.field]} {comparison} ${len(values)}"

    return joined(of, compared)
