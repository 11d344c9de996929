r"""Filters of lists: a part of AIP-160, from text to a tree whose values have the fields' types.

    expression = sequence {"AND" sequence}
    sequence   = factor {factor}                 what stands side by side must all hold
    factor     = term {"OR" term}                OR binds closer than AND, as AIP-160 has it
    term       = ["NOT" | "-"] ("(" expression ")" | field operator value)
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">="
    value      = word | "text" | 'text'          in quotes, \ lets the next character be itself

Keywords are capital. There are no functions, no wildcards and no `:`. docs/filters.md says it for
people.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from services.common.kernel.errors import InvalidInput, shown
from services.common.kernel.names import Pattern
from services.common.kernel.reasons import Reason
from services.common.kernel.units import fits_int64
from services.common.kernel.values import value_class

FILTER_SIZE_MAX = 4000
"""Characters."""
DEPTH_MAX = 16
"""Parentheses within parentheses."""

Value = str | int | bool
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
OPERATORS: Mapping[str, Callable[[Value, Value], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    **_ORDER,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[()])|(?P<operator><=|>=|!=|[=<>])
    |(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[^\s()<>=!"']+)|(?P<end>\Z))""",
    re.VERBOSE | re.DOTALL,
)
_WHOLE = re.compile("-?[0-9]{1,19}")


@value_class
class Match:
    """A field compares so with a value."""

    field: str
    operator: str
    value: Value


@value_class
class All:
    """All parts hold; none: everything does."""

    parts: "tuple[Filter, ...]"


@value_class
class AnyOf:
    """At least one part holds."""

    parts: "tuple[Filter, ...]"


@value_class
class Not:
    """The part does not hold."""

    part: "Filter"


Filter = Match | All | AnyOf | Not


@value_class
class Field:
    """What a field can be compared with. `read` returns None for what is no value of it."""

    read: Callable[[str], Value | None]
    says: str
    is_ordered: bool = False


def text() -> Field:
    """Return a field of any text."""
    return Field(lambda said: said, "a text")


def choice(*choices: str) -> Field:
    """Return a field that is one of a few words."""
    return Field(lambda said: said if said in choices else None, f"one of {', '.join(choices)}")


def whole() -> Field:
    """Return a field of whole numbers that fit int64."""

    def read(said: str) -> int | None:
        number = int(said) if _WHOLE.fullmatch(said) else None
        return number if number is not None and fits_int64(number) else None

    return Field(read, "a whole number", is_ordered=True)


def flag() -> Field:
    """Return a field that is true or false."""
    return Field({"true": True, "false": False}.get, "true or false")


def name(pattern: Pattern) -> Field:
    """Return a field that holds a resource name; its value is the id in it."""

    def read(said: str) -> str | None:
        try:
            return pattern.id("filter", said)
        except InvalidInput:
            return None

    return Field(read, f"a name, {pattern}")


Fields = Mapping[str, Field]


def parse(said: str, fields: Fields) -> Filter:
    """Return what a filter says of these fields; All(()) where it is empty. Raises InvalidInput."""
    if len(said) > FILTER_SIZE_MAX:
        raise _wrong(f"it has {len(said)} characters; write at most {FILTER_SIZE_MAX}")
    if not all(each.isprintable() or each.isspace() for each in said):
        raise _wrong("it has a character that cannot be printed, as no value has")
    if not said.strip():
        return All(())
    return _Parser(said, fields).whole()


def holds(of: Filter, values: Mapping[str, Value]) -> bool:
    """Say whether a filter holds for what has these values."""
    match of:
        case Match(field, sign, value):
            return OPERATORS[sign](values[field], value)
        case All(parts):
            return all(holds(part, values) for part in parts)
        case AnyOf(parts):
            return any(holds(part, values) for part in parts)
        case Not(part):
            return not holds(part, values)


def joined(of: Filter, compared: Callable[[Match], str]) -> str:
    """Return a condition of SQL; its comparisons are what `compared` makes of them, in order."""
    match of:
        case Match():
            return compared(of)
        case All(parts):
            return " AND ".join(f"({joined(part, compared)})" for part in parts) or "true"
        case AnyOf(parts):
            return " OR ".join(f"({joined(part, compared)})" for part in parts) or "false"
        case Not(part):
            return f"({joined(part, compared)}) IS NOT TRUE"


def wanting(**wanted: str) -> str:
    """Return a filter as text that wants these values of fields; of an empty one any."""
    escaped = (
        (field, value.replace("\\", "\\\\").replace('"', '\\"'))
        for field, value in wanted.items()
        if value
    )
    return " AND ".join(f'{field} = "{value}"' for field, value in escaped)


def matches_in(of: Filter) -> Iterator[Match]:
    """Yield every comparison in a filter."""
    match of:
        case Match():
            yield of
        case All(parts) | AnyOf(parts):
            for part in parts:
                yield from matches_in(part)
        case Not(part):
            yield from matches_in(part)


def _wrong(what: str) -> InvalidInput:
    return InvalidInput(Reason.INVALID_ARGUMENT, f"filter: {what}", field="filter")


@dataclass(slots=True)
class _Token:
    kind: str
    text: str
    at: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text in words

    def is_mark(self, mark: str) -> bool:
        return self.kind == "mark" and self.text == mark


class _Parser:
    def __init__(self, said: str, fields: Fields) -> None:
        self._fields = fields
        self._tokens = list(_tokens(said))
        self._next = 0
        self._depth = 0

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += token.kind != "end"
        return token

    def _refuse(self, wanted: str) -> NoReturn:
        token = self._token
        where = "at its end" if token.kind == "end" else f"at {shown(token.text)}"
        raise _wrong(f"{where} (character {token.at + 1}) there should be {wanted}")

    def whole(self) -> Filter:
        found = self._expression()
        if self._token.kind != "end":
            self._refuse("AND, OR or the end")
        return found

    def _expression(self) -> Filter:
        parts = [self._factor()]
        while self._token.is_word("AND") or not self._ends():
            if self._token.is_word("AND"):
                self._take()
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _ends(self) -> bool:
        return self._token.kind == "end" or self._token.is_mark(")")

    def _factor(self) -> Filter:
        parts = [self._term()]
        while self._token.is_word("OR"):
            self._take()
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _term(self) -> Filter:
        token = self._token
        if token.is_word("NOT", "-"):
            self._take()
            return Not(self._simple())
        if token.kind == "word" and token.text.startswith("-"):
            self._tokens[self._next] = _Token("word", token.text[1:], token.at + 1)
            return Not(self._simple())
        return self._simple()

    def _simple(self) -> Filter:
        if not self._token.is_mark("("):
            return self._match()
        if self._depth == DEPTH_MAX:
            raise _wrong(f"more than {DEPTH_MAX} parentheses within another")
        self._take()
        self._depth += 1
        found = self._expression()
        self._depth -= 1
        if not self._token.is_mark(")"):
            self._refuse('")"')
        self._take()
        return found

    def _match(self) -> Match:
        known = ", ".join(sorted(self._fields))
        if self._token.kind != "word" or self._token.is_word("AND", "OR", "NOT"):
            self._refuse(f"a field, one of {known}")
        if self._token.text not in self._fields:
            raise _wrong(f"there is no field {shown(self._token.text)}; known are {known}")
        field_name = self._take().text
        field = self._fields[field_name]
        signs = [sign for sign in OPERATORS if field.is_ordered or sign not in _ORDER]
        if self._token.kind != "operator" or self._token.text not in signs:
            self._refuse(f"one of {' '.join(signs)} after {field_name}")
        sign = self._take().text
        if self._token.kind not in ("word", "quoted"):
            self._refuse(f"what {field_name} is compared with, {field.says}")
        said = self._take()
        value = field.read(_unquoted(said))
        if value is None:
            raise _wrong(f"{field_name} is {field.says}, not {shown(_unquoted(said))}")
        return Match(field_name, sign, value)


def _tokens(said: str) -> Iterator[_Token]:
    at = 0
    while True:
        found = _TOKEN.match(said, at)
        if found is None:
            rest = said[at:].lstrip()
            raise _wrong(
                f"{shown(rest)} (character {len(said) - len(rest) + 1}) cannot be read; "
                "quotes have to be closed, and != is written in one"
            )
        kind = str(found.lastgroup)
        yield _Token(kind, found[kind], found.start(kind))
        if kind == "end":
            return
        at = found.end()


def _unquoted(token: _Token) -> str:
    if token.kind != "quoted":
        return token.text
    return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
