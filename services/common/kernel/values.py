"""Values: what is made once and never changed, cheap enough to make for every message.

`dataclass(frozen=True)` sets each field through object.__setattr__, five times slower than an
assignment: with some 130 fields a sale that was a twentieth of all its work. Here the type checker
alone, which reads every line of the product, sees to it that nothing is assigned.
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_class(kind: type[T]) -> type[T]:
    """Return the class as a dataclass with slots, equal and hashed by its fields."""
    return dataclass(slots=True, unsafe_hash=True)(kind)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def named_value_class(kind: type[T]) -> type[T]:
    """Return the same of a class whose fields are always named."""
    return dataclass(slots=True, unsafe_hash=True, kw_only=True)(kind)
