"""A plan: what a tariff version charges, as a document.

Rates and the calendar that says when each holds, a ladder, surcharges, fees, taxes. The
document is JSON; `read` checks all of it, so that whoever charges can trust what it is given.
Prices are integers in 10^-(ledger decimals - 3) of the currency per billing unit (`*_micro`),
energy in thousandths of the billing unit (`*_milli`), shares in parts per million (`*_ppm`).

What a plan charges depends on the energy of each rate and of each ladder's period, never on the
order in which readings arrive. A plan for which that could not be is refused (PATH_DEPENDENT).
"""

import re
from collections.abc import Iterator
from datetime import date
from typing import Annotated, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from services.common.kernel.errors import InvalidInput
from services.common.kernel.profiles import RATE_NAMES
from services.common.kernel.reasons import Reason
from services.common.kernel.zones import zone_named

SLOTS_MAX = 14
SEASONS_MAX = 12
STEPS_MAX = 8
COMPONENTS_MAX = 8
PRICE_MICRO_MAX = 10**13
"""Ten million of the currency for a kWh: beyond it a price is a slip of the hand."""
ENERGY_MILLI_MAX = 10**15
PPM = 10**6
DAY_KINDS = ("weekday", "weekend", "holiday")
_MONTH_DAY = re.compile(r"(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
HOUR_MINUTE = re.compile(r"([01]\d|2[0-3]):[0-5]\d")

RateName = Literal["sharp", "peak", "flat", "valley", "deep_valley"]
DayKind = Literal["weekday", "weekend", "holiday"]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]*$")]
Price = Annotated[int, Field(ge=0, le=PRICE_MICRO_MAX, strict=True)]
Ppm = Annotated[int, Field(ge=0, le=PPM, strict=True)]
Energy = Annotated[int, Field(gt=0, le=ENERGY_MILLI_MAX, strict=True)]
Adder = Annotated[int, Field(ge=-PRICE_MICRO_MAX, le=PRICE_MICRO_MAX, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Slot(_Part):
    """A rate from a wall-clock time on, until the next slot or the day's end."""

    begins: str
    rate: RateName


class DayTable(_Part):
    """The slots of a day of one of `kinds`; the first begins at 00:00."""

    kinds: tuple[DayKind, ...] = Field(min_length=1)
    slots: tuple[Slot, ...] = Field(min_length=1, max_length=SLOTS_MAX)


class Season(_Part):
    """Day tables from a day of the year on (MM-DD), until the next season."""

    name: Name
    begins: str
    days: tuple[DayTable, ...]


class Step(_Part):
    """What a unit above `above_milli` of the period costs more than one below the first step.

    `multiply_ppm` and `rates_micro` are read to be refused: they would make what is charged depend
    on the order of readings.
    """

    above_milli: Energy
    add_micro: Adder | None = None
    multiply_ppm: int | None = None
    rates_micro: dict[RateName, Price] | None = None


class Ladder(_Part):
    """Steps on what is used in a period.

    basis total: `steps` on the energy of all rates together, added to each rate's price; basis
    rate: `rate_steps`, a ladder for each rate that has one. `scope`: whose energy is added up.
    """

    period: Literal["month", "year"]
    scope: Literal["account", "meter"] = "account"
    basis: Literal["total", "rate"] = "total"
    steps: tuple[Step, ...] = Field(default=(), max_length=STEPS_MAX)
    rate_steps: dict[RateName, tuple[Step, ...]] = Field(default_factory=dict)


class Surcharge(_Part):
    """A price a unit on top, whatever the rate."""

    name: Name
    price_micro: Price


class Fee(_Part):
    """An amount an account owes for each local day or month, whatever it uses."""

    name: Name
    period: Literal["day", "month"]
    amount_micro: Price


class Tax(_Part):
    """A share of the price of its `base`, folded into prices a unit, or into fees."""

    name: Name
    ppm: Ppm
    base: tuple[Literal["energy", "surcharges", "fees"], ...] = Field(min_length=1)


class Plan(_Part):
    """What one version of a tariff charges. The module's docstring says the units."""

    zone: str
    rates_micro: dict[RateName, Price] = Field(min_length=1)
    seasons: tuple[Season, ...] = Field(default=(), max_length=SEASONS_MAX)
    holidays: tuple[date, ...] = Field(default=(), max_length=3660)
    workdays: tuple[date, ...] = Field(default=(), max_length=3660)
    ladder: Ladder | None = None
    surcharges: tuple[Surcharge, ...] = Field(default=(), max_length=COMPONENTS_MAX)
    fees: tuple[Fee, ...] = Field(default=(), max_length=COMPONENTS_MAX)
    taxes: tuple[Tax, ...] = Field(default=(), max_length=COMPONENTS_MAX)

    @model_validator(mode="after")
    def _is_a_plan(self) -> Self:
        for reason, field, text in _problems(self):
            raise PydanticCustomError(reason.value, "{text}", {"text": text, "field": field})
        return self

    def text(self) -> str:
        """Return the document, equal for equal plans."""
        dumped = self.model_dump(mode="json", exclude_defaults=True)
        return orjson.dumps(dumped, option=orjson.OPT_SORT_KEYS).decode()


def read(text: str) -> Plan:
    """Return the plan of a document.

    Raises InvalidInput where it is none (the message names the place), with PATH_DEPENDENT where
    what it charges would depend on the order of readings.
    """
    try:
        return Plan.model_validate_json(text)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        reason = Reason.INVALID_ARGUMENT
        place = ".".join(map(str, first["loc"]))
        message = first["msg"]
        if first["type"] in Reason.__members__:
            reason, place = Reason(first["type"]), str(first["ctx"]["field"])
        raise InvalidInput(
            reason, f"plan, {place or 'document'}: {message}", field="plan"
        ) from wrong


def flat(price_micro: int) -> Plan:
    """Return the plan of a flat tariff: one rate, all the time. Its price may be any."""
    return Plan.model_construct(zone="UTC", rates_micro={"flat": price_micro})


_Problem = tuple[Reason, str, str]


def _problems(plan: Plan) -> Iterator[_Problem]:
    try:
        zone_named(plan.zone)
    except InvalidInput as unknown:
        yield Reason.INVALID_ARGUMENT, "zone", unknown.message
    if not plan.seasons and len(plan.rates_micro) > 1:
        text = "several rates need seasons that say when each holds"
        yield Reason.INVALID_ARGUMENT, "seasons", text
    if both := set(plan.holidays) & set(plan.workdays):
        text = f"{min(both)} is a holiday and a workday: take it out of one of them"
        yield Reason.INVALID_ARGUMENT, "workdays", text
    parts = (("surcharges", plan.surcharges), ("fees", plan.fees), ("taxes", plan.taxes))
    for kind, named in parts:
        names = [part.name for part in named]
        if len(set(names)) < len(names):
            yield Reason.INVALID_ARGUMENT, kind, "two of them have one name"
    yield from _season_problems(plan)
    if plan.ladder is not None:
        yield from _ladder_problems(plan, plan.ladder)


def _season_problems(plan: Plan) -> Iterator[_Problem]:
    begins = [season.begins for season in plan.seasons]
    if not all(_MONTH_DAY.fullmatch(day) and _is_every_year(day) for day in begins):
        text = "begins is a day of every year, MM-DD: e.g. 07-01; not 02-29"
        yield Reason.INVALID_ARGUMENT, "seasons", text
    if sorted(set(begins)) != begins:
        yield Reason.INVALID_ARGUMENT, "seasons", "they begin in the order of the year, each once"
    for season in plan.seasons:
        where = f"seasons {season.name}"
        kinds = [kind for table in season.days for kind in table.kinds]
        if sorted(kinds) != sorted(DAY_KINDS):
            text = "weekday, weekend and holiday each need one day table"
            yield Reason.INVALID_ARGUMENT, where, text
        for table in season.days:
            times = [slot.begins for slot in table.slots]
            if not all(map(HOUR_MINUTE.fullmatch, times)) or times[0] != "00:00":
                text = "slots begin at HH:MM, the first of a day at 00:00"
                yield Reason.INVALID_ARGUMENT, where, text
            if sorted(set(times)) != times:
                yield Reason.INVALID_ARGUMENT, where, "slots of a day begin one after the other"
            for slot in table.slots:
                if slot.rate not in plan.rates_micro:
                    text = f"rate {slot.rate} has no price in rates_micro"
                    yield Reason.INVALID_ARGUMENT, where, text


def _is_every_year(month_day: str) -> bool:
    try:
        date.fromisoformat(f"2001-{month_day}")
    except ValueError:
        return False
    return True


def _ladder_problems(plan: Plan, ladder: Ladder) -> Iterator[_Problem]:
    by_rate = ladder.basis == "rate"
    if bool(ladder.steps) == by_rate or bool(ladder.rate_steps) != by_rate:
        text = "basis total has steps, basis rate has rate_steps, and neither has the other's"
        yield Reason.INVALID_ARGUMENT, "ladder", text
    if unpriced := set(ladder.rate_steps) - set(plan.rates_micro):
        text = f"rate {min(unpriced)} has steps and no price in rates_micro"
        yield Reason.INVALID_ARGUMENT, "ladder", text
    for steps in ladder.rate_steps.values() if by_rate else (ladder.steps,):
        yield from _step_problems(plan, steps)


def _step_problems(plan: Plan, steps: tuple[Step, ...]) -> Iterator[_Problem]:
    aboves = [step.above_milli for step in steps]
    if sorted(set(aboves)) != aboves or not steps or len(steps) > STEPS_MAX:
        text = f"steps rise, each above the one before, 1 to {STEPS_MAX} of them"
        yield Reason.INVALID_ARGUMENT, "ladder", text
    for step in steps:
        if step.multiply_ppm is not None or step.rates_micro is not None:
            where = f"the step above {step.above_milli}"
            text = (
                f"{where} prices each rate differently by the total of the period, so what is "
                "charged would depend on the order in which readings arrive: say add_micro (the "
                "same for each rate), or give each rate steps of its own (basis rate)"
            )
            yield Reason.PATH_DEPENDENT, "ladder", text
        elif step.add_micro is None:
            text = f"the step above {step.above_milli} needs add_micro"
            yield Reason.INVALID_ARGUMENT, "ladder", text
        elif min(plan.rates_micro.values()) + step.add_micro < 0:
            text = f"the step above {step.above_milli} makes a price negative"
            yield Reason.INVALID_ARGUMENT, "ladder", text


def rate_index(name: str) -> int:
    """Return the number of a rate: its place in RATE_NAMES, as in a reading's rate registers."""
    return RATE_NAMES.index(name)
