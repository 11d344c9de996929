"""Filters of lists (services.common.kernel.filters) as conditions of SQL."""

from collections.abc import Callable, Mapping
from typing import Any

from services.common.kernel.filters import All, AnyOf, Filter, Match, Not


def where(of: Filter, columns: Mapping[str, str], values: list[Any]) -> str:
    """Return a condition; what it compares with is appended to `values`, as $1, $2, ...

    `columns`: field → what it is in SQL. What is NULL equals nothing, and has no order.
    """

    def compared(match: Match) -> str:
        values.append(match.value)
        comparison = "IS DISTINCT FROM" if match.operator == "!=" else match.operator
        return f"{columns[match.field]} {comparison} ${len(values)}"

    return joined(of, compared)


def joined(of: Filter, compared: Callable[[Match], str]) -> str:
    """Return a condition whose comparisons are what `compared` makes of them, left to right."""
    match of:
        case Match():
            return compared(of)
        case All(parts):
            return " AND ".join(f"({joined(part, compared)})" for part in parts) or "true"
        case AnyOf(parts):
            return " OR ".join(f"({joined(part, compared)})" for part in parts) or "false"
        case Not(part):
            return f"({joined(part, compared)}) IS NOT TRUE"
