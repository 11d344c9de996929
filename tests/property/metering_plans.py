"""Plans of every kind for the histories, and moments at which their calendars do something.

A few fixed documents, not drawn ones: the scalar model reads each off the clock minute by minute
and remembers what it saw.
"""

from datetime import UTC, datetime
from itertools import cycle
from typing import Any

from services.common.tariffs.plan import Plan

WEEKDAY, WEEKEND, HOLIDAY = "weekday", "weekend", "holiday"
EVERY_DAY = (WEEKDAY, WEEKEND, HOLIDAY)


def table(*kinds: str, **slots: str) -> dict[str, Any]:
    """Return a day table; slots as t0830="peak"."""
    begins = {f"{name[1:3]}:{name[3:]}": rate for name, rate in slots.items()}
    return {"kinds": kinds, "slots": [{"begins": at, "rate": rate} for at, rate in begins.items()]}


def quarters(*rates: str) -> dict[str, str]:
    """Return fourteen slots around noon and midnight, the rates in turn."""
    turn = cycle(rates)
    times = ("0000", "0015", "0030", "0130", "0200", "0215", "0230", "0245", "0300", "0330")
    return {f"t{at}": next(turn) for at in (*times, "0800", "1200", "2300", "2345")}


def document(zone: str, rates_micro: dict[str, int], *days: Any, **more: Any) -> str:
    """Return a plan of one season, or of `seasons`."""
    seasons = more.pop("seasons", None)
    if days:
        seasons = [{"name": "all", "begins": "01-01", "days": days}]
    fields = {"zone": zone, "rates_micro": rates_micro, **more}
    if seasons:
        fields["seasons"] = seasons
    return Plan.model_validate(fields).text()


def steps(*pairs: tuple[int, int]) -> list[dict[str, int]]:
    return [{"above_milli": above, "add_micro": add} for above, add in pairs]


FIVE = {
    "sharp": 1_500_000,
    "peak": 1_000_000,
    "flat": 777_777,
    "valley": 300_001,
    "deep_valley": 1,
}
MONTHLY = {"period": "month", "steps": steps((900, 50_000), (5_000, 300_005), (20_000, -1))}
VAT = [{"name": "VAT", "ppm": 130_000, "base": ["energy", "surcharges"]}]
FUND = [{"name": "fund", "price_micro": 19_101}, {"name": "reserve", "price_micro": 4}]

PLANS: dict[str, tuple[str, ...]] = {
    # No ladder, or one on the account's month.
    "T0": (
        document(
            "Asia/Shanghai",
            {"peak": 1_200_000, "valley": 400_000},
            table(WEEKDAY, t0000="valley", t0800="peak", t2200="valley"),
            table(WEEKEND, HOLIDAY, t0000="valley"),
            holidays=["2027-02-17", "2027-10-01"],
            workdays=["2027-02-20"],
        ),
        document("Asia/Shanghai", {"flat": 528_300}, ladder=MONTHLY, taxes=VAT),
        document(
            "Asia/Shanghai",
            FIVE,
            seasons=[
                {
                    "name": "spring",
                    "begins": "02-01",
                    "days": [table(*EVERY_DAY, **quarters("flat", "peak", "sharp", "valley"))],
                },
                {
                    "name": "rest",
                    "begins": "04-01",
                    "days": [
                        table(WEEKDAY, **quarters("deep_valley", "flat", "valley")),
                        table(WEEKEND, t0000="flat"),
                        table(HOLIDAY, t0000="deep_valley", t1200="flat"),
                    ],
                },
            ],
            ladder=MONTHLY,
            surcharges=FUND,
            taxes=VAT,
        ),
    ),
    # A ladder of each rate, on the account's month; where DST moves by an hour, also at midnight.
    "T1": tuple(
        document(
            zone,
            FIVE,
            table(*EVERY_DAY, **quarters("valley", "peak", "flat")),
            ladder={
                "period": "month",
                "basis": "rate",
                "rate_steps": {"peak": steps((500, 70_000), (2_000, 1)), "flat": steps((800, 9))},
            },
            taxes=VAT,
        )
        for zone in ("Europe/Berlin", "America/Havana")
    ),
    # A ladder of each meter, on its year; half an hour of DST, and zones off the hour.
    "T2": tuple(
        document(
            zone,
            {"peak": 900_000, "valley": 333_333},
            table(*EVERY_DAY, **quarters("peak", "valley")),
            ladder={
                "period": "year",
                "scope": "meter",
                "steps": steps((1_000, 200_000), (4_000, -100_000), (9_000, 10**6)),
            },
            surcharges=FUND,
        )
        for zone in ("Australia/Lord_Howe", "America/St_Johns")
    ),
}


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


INSTANTS_MS = tuple(
    _ms(text)
    for text in (
        "2027-01-31T16:00",  # February in Shanghai, and its spring
        "2027-01-31T23:00",  # February in Berlin
        "2027-02-01T05:00",  # February in Havana
        "2027-02-16T16:00",  # a holiday in Shanghai
        "2027-02-28T16:00",
        "2027-03-14T05:00",  # Havana: midnight is left out
        "2027-03-28T01:00",  # Berlin: 02:00 is left out
        "2027-03-31T22:00",
        "2027-04-03T15:00",  # Lord Howe: half an hour comes twice
        "2027-10-02T15:30",  # Lord Howe: half an hour is left out
        "2027-10-31T01:00",  # Berlin: 02:00 comes twice
        "2027-11-07T05:00",  # Havana: midnight comes twice
        "2027-12-31T13:00",  # a year in Lord Howe
        "2028-01-01T03:30",  # a year in St. John's
    )
)
