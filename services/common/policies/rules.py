"""The rules of a policy: when arrears may cut power, as a document.

Thresholds say who is in arrears; these rules say what must hold besides before a relay opens. The
document is JSON; `read` checks all of it, at every door, so that whoever decides can trust what it
is given. A policy without a document has the rules of an empty one.
"""

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.zones import zone_named
from services.common.tariffs.plan import HOUR_MINUTE, DayKind

WINDOWS_MAX = 16
DATES_MAX = 3660
MINUTES_MAX = 60 * 24 * 31
"""A month: who must wait longer for its money than that is kept on power, by its own order."""
_MINUTE_MS = 60_000
HYSTERESIS_NANO_MAX = 10**15
UNUSUAL_FACTOR_MAX = 1_000
IDLE_DAYS_MAX = 365
QUALITIES = "AVESM"
"""Actual, validated, estimated, substituted, manual."""

Minutes = Annotated[int, Field(ge=0, le=MINUTES_MAX, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Notice(_Part):
    """Before a cut a notice goes out, and so long passes.

    `required`: and its delivery has been confirmed.
    """

    lead_minutes: Minutes
    required: Annotated[bool, Field(strict=True)] = False

    @property
    def lead_ms(self) -> int:
        return self.lead_minutes * _MINUTE_MS


class Window(_Part):
    """Nobody is cut on days of `days`, from `begins` until `ends` of the wall clock (HH:MM).

    Where `ends` is not later it is the next day's, of whatever kind that day is.
    """

    days: tuple[DayKind, ...] = Field(min_length=1)
    begins: str
    ends: str


class Rules(_Part):
    """What must hold before arrears cut. The wall clock of `zone` decides what windows hold.

    `unusual_factor`: a meter is flagged that takes more than so many times what it usually takes
    at the hour of that clock; `idle_days`: one whose register stands so long although its relay is
    closed. None: nobody asks.
    """

    zone: str | None = None
    hysteresis_nano: Annotated[int, Field(ge=0, le=HYSTERESIS_NANO_MAX, strict=True)] = 0
    grace_minutes: Minutes = 0
    notice: Notice | None = None
    no_cut: tuple[Window, ...] = Field(default=(), max_length=WINDOWS_MAX)
    holidays: tuple[date, ...] = Field(default=(), max_length=DATES_MAX)
    workdays: tuple[date, ...] = Field(default=(), max_length=DATES_MAX)
    qualities: str = "AVM"
    unusual_factor: Annotated[int, Field(ge=2, le=UNUSUAL_FACTOR_MAX, strict=True)] | None = None
    idle_days: Annotated[int, Field(ge=1, le=IDLE_DAYS_MAX, strict=True)] | None = None

    @model_validator(mode="after")
    def _are_rules(self) -> Self:
        for field, text in _problems(self):
            raise PydanticCustomError("rules", "{text}", {"text": text, "field": field})
        return self

    @property
    def grace_ms(self) -> int:
        return self.grace_minutes * _MINUTE_MS

    def text(self) -> str:
        """Return the document, equal for equal rules."""
        dumped = self.model_dump(mode="json", exclude_defaults=True)
        return orjson.dumps(dumped, option=orjson.OPT_SORT_KEYS).decode()


def read(text: str | None) -> Rules:
    """Return the rules of a document; none: the rules of a policy without one.

    Raises InvalidInput where it is no such document; the message names the place.
    """
    if text is None:
        return NONE
    try:
        return Rules.model_validate_json(text)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        place = ".".join(map(str, first["loc"])) or first.get("ctx", {}).get("field", "document")
        raise InvalidInput(
            Reason.INVALID_ARGUMENT, f"rules, {place}: {first['msg']}", field="rules"
        ) from wrong


def _problems(rules: Rules) -> Iterator[tuple[str, str]]:
    if rules.zone is not None:
        try:
            zone_named(rules.zone)
        except InvalidInput as unknown:
            yield "zone", unknown.message
    elif rules.no_cut:
        yield "zone", "windows need the zone whose wall clock they mean: e.g. Asia/Shanghai"
    for window in rules.no_cut:
        if not all(map(HOUR_MINUTE.fullmatch, (window.begins, window.ends))):
            yield "no_cut", "windows begin and end at HH:MM: e.g. 22:00, 08:00"
    if both := set(rules.holidays) & set(rules.workdays):
        yield "workdays", f"{min(both)} is a holiday and a workday: take it out of one of them"
    known = set(rules.qualities) <= set(QUALITIES)
    if not known or not rules.qualities or len(set(rules.qualities)) < len(rules.qualities):
        yield "qualities", f"letters of {QUALITIES}, at least one, each once: e.g. AVM"


NONE = Rules()
"""Of a policy without a document."""
