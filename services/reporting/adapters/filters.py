"""Filters of lists (services.common.kernel.filters) as conditions of SQL."""

from collections.abc import Mapping
from typing import Any

from services.common.kernel.filters import All, AnyOf, Filter, Match, Not


def where(of: Filter, columns: Mapping[str, str], values: list[Any]) -> str:
    """Return a condition; what it compares with is appended to `values`, as $1, $2, ...

    `columns`: field → what it is in SQL. What is NULL equals nothing, and has no order.
    """
    match of:
        case Match(field, sign, value):
            values.append(value)
            comparison = "IS DISTINCT FROM" if sign == "!=" else sign
            return f"{columns[field]} {comparison} ${len(values)}"
        case All(parts):
            return " AND ".join(f"({where(part, columns, values)})" for part in parts) or "true"
        case AnyOf(parts):
            return " OR ".join(f"({where(part, columns, values)})" for part in parts)
        case Not(part):
            return f"({where(part, columns, values)}) IS NOT TRUE"
