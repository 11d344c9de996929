"""A plan's document: what is refused, where, and what is said; equal plans are equal texts."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.common.kernel.errors import InvalidInput
from services.common.kernel.profiles import RATE_NAMES
from services.common.kernel.reasons import Reason
from services.common.tariffs import plan as plans

SLOTS = [{"begins": "00:00", "rate": "valley"}, {"begins": "08:00", "rate": "peak"}]
EVERY_DAY = [{"kinds": ["weekday", "weekend", "holiday"], "slots": SLOTS}]
PLAN: dict[str, Any] = {
    "zone": "Asia/Shanghai",
    "rates_micro": {"peak": 900_000, "valley": 300_000},
    "seasons": [{"name": "all", "begins": "01-01", "days": EVERY_DAY}],
    "ladder": {"period": "month", "steps": [{"above_milli": 100, "add_micro": -300_000}]},
    "surcharges": [{"name": "fund", "price_micro": 1}],
    "taxes": [{"name": "VAT", "ppm": 130_000, "base": ["energy"]}],
    "holidays": ["2027-10-01"],
}


def days(**changes: Any) -> dict[str, Any]:
    return {"seasons": [{"name": "all", "begins": "01-01", "days": [{**EVERY_DAY[0], **changes}]}]}


def ladder(**changes: Any) -> dict[str, Any]:
    return {"ladder": {"period": "month", **changes}}


def steps(*parts: dict[str, Any]) -> dict[str, Any]:
    return ladder(steps=list(parts))


FIFTEEN = [{"begins": f"{hour:02}:00", "rate": "peak"} for hour in range(15)]
ONE = {"above_milli": 100, "add_micro": 1}
REFUSED = [
    ({"zone": "Mars/Olympus"}, "zone: there is no IANA time zone 'Mars/Olympus'"),
    ({"seasons": []}, "several rates need seasons"),
    ({"rates_micro": {}}, "rates_micro: "),
    ({"rates_micro": {"night": 1}}, "rates_micro.night"),
    ({"rates_micro": {"peak": -1, "valley": 1}}, "rates_micro.peak"),
    ({"rates_micro": {"peak": 0.5, "valley": 1}}, "rates_micro.peak"),
    ({"levies": []}, "levies: Extra inputs"),
    ({"fees": [{"name": "a", "period": "week", "amount_micro": 1}]}, "fees.0.period"),
    ({"fees": [{"name": "a", "period": "day", "amount_micro": -1}]}, "fees.0.amount_micro"),
    (
        {"fees": [{"name": "a", "period": "day", "amount_micro": 1}] * 2},
        "two of them have one name",
    ),
    ({"workdays": ["2027-10-01"]}, "2027-10-01 is a holiday and a workday"),
    ({"surcharges": [{"name": "a", "price_micro": 1}] * 2}, "two of them have one name"),
    ({"taxes": [{"name": "VAT", "ppm": 10**6 + 1, "base": ["energy"]}]}, "taxes.0.ppm"),
    (days(slots=SLOTS[1:]), "the first of a day at 00:00"),
    (days(slots=[SLOTS[0], SLOTS[0]]), "begin one after the other"),
    (days(slots=[{"begins": "00:00", "rate": "sharp"}]), "rate sharp has no price"),
    (days(slots=[{"begins": "24:00", "rate": "peak"}]), "HH:MM"),
    (days(slots=FIFTEEN), "at most 14 items"),
    (days(kinds=["weekday"]), "weekday, weekend and holiday each need one day table"),
    (days(kinds=["weekday", "weekday", "weekend", "holiday"]), "each need one day table"),
    ({"seasons": [{**PLAN["seasons"][0], "begins": "02-29"}]}, "not 02-29"),
    ({"seasons": [{**PLAN["seasons"][0], "begins": "7-1"}]}, "MM-DD"),
    ({"seasons": PLAN["seasons"] * 2}, "in the order of the year, each once"),
    (ladder(), "basis total has steps"),
    (ladder(basis="rate", steps=[ONE]), "basis rate has rate_steps"),
    (ladder(basis="rate", rate_steps={"sharp": [ONE]}), "rate sharp has steps and no price"),
    (ladder(basis="rate", rate_steps={"peak": []}), "steps rise"),
    (steps(ONE, ONE), "steps rise, each above the one before"),
    (steps({"above_milli": 100}), "the step above 100 needs add_micro"),
    (steps({"above_milli": 0, "add_micro": 1}), "above_milli"),
    (steps({"above_milli": 100, "add_micro": -300_001}), "makes a price negative"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_what_is_no_plan_is_refused_with_its_place(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plans.read(json.dumps({**PLAN, **changes}))
    assert refused.value.reason is Reason.INVALID_ARGUMENT
    assert says in refused.value.message


def slots(count: int) -> dict[str, Any]:
    minutes = range(0, 5 * count, 5)
    times = [f"{minute // 60:02}:{minute % 60:02}" for minute in minutes]
    return days(slots=[{"begins": each, "rate": "peak"} for each in times])


def seasons(count: int) -> dict[str, Any]:
    begun = [f"{month:02}-{day}" for month in range(1, 13) for day in ("01", "15")]
    return {"seasons": [{**PLAN["seasons"][0], "begins": each} for each in begun[:count]]}


def parts(kind: str, **each: Any) -> Callable[[int], dict[str, Any]]:
    return lambda count: {kind: [{"name": str(number), **each} for number in range(count)]}


LIMITS = [
    (slots, plans.SLOTS_MAX),
    (seasons, plans.SEASONS_MAX),
    (lambda count: steps(*({**ONE, "above_milli": n + 1} for n in range(count))), plans.STEPS_MAX),
    (parts("surcharges", price_micro=1), plans.COMPONENTS_MAX),
    (parts("fees", period="day", amount_micro=1), plans.COMPONENTS_MAX),
    (parts("taxes", ppm=1, base=["energy"]), plans.COMPONENTS_MAX),
]


@pytest.mark.parametrize(("of", "most"), LIMITS)
def test_a_plan_may_have_as_many_parts_as_its_limit_says_and_not_one_more(
    of: Callable[[int], dict[str, Any]], most: int
) -> None:
    assert plans.read(json.dumps({**PLAN, **of(most)}))
    with pytest.raises(InvalidInput, match=str(most)):
        plans.read(json.dumps({**PLAN, **of(most + 1)}))


def test_a_day_has_fourteen_slots_and_a_tariff_five_rates() -> None:
    assert (plans.SLOTS_MAX, len(RATE_NAMES)) == (14, 5)


@pytest.mark.parametrize(
    "step",
    [
        {"above_milli": 5, "multiply_ppm": 1_500_000},
        {"above_milli": 5, "rates_micro": {"peak": 10**6, "valley": 400_000}},
    ],
)
def test_what_would_depend_on_the_order_of_readings_is_refused_with_what_to_write(
    step: dict[str, Any],
) -> None:
    with pytest.raises(InvalidInput) as refused:
        plans.read(json.dumps({**PLAN, **steps(step)}))
    assert refused.value.reason is Reason.PATH_DEPENDENT
    assert "the order in which readings arrive: say add_micro" in refused.value.message


@pytest.mark.parametrize("text", ["", "[", "[]", "null", '{"zone": "UTC"}', "\x00"])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^plan, "):
        plans.read(text)


def test_equal_plans_are_equal_texts_and_a_text_is_its_plan() -> None:
    other = dict(reversed(PLAN.items()))
    other["ladder"] = {"steps": PLAN["ladder"]["steps"], "scope": "account", "period": "month"}
    texts = {plans.read(json.dumps(document)).text() for document in (PLAN, other)}
    assert len(texts) == 1
    (text,) = texts
    assert plans.read(text) == plans.read(json.dumps(PLAN))
    assert plans.read(text).text() == text
