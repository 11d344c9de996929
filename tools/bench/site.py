"""The facts of a site for metering: what vending would tell of it, without vending."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from services.common.kernel.ids import column_key
from services.common.tariffs.plan import Plan

SITE, POLICY = "bench", "bench"
FLAT, TOU_LADDER = "flat", "tou_ladder"
"""Tariffs."""
ENERGY, MONEY, OWNER = "electricity", "CNY", "bench"
ZONE = "Asia/Shanghai"
PRICE_MICRO = 500_000
POWER_W_MAX = 10_000
"""What a meter's load can take: each reading is held against it."""
CREDIT_NANO = 10**18
"""More than a bench can use up: no account is cut."""
BOOK = {"book_epoch": 1, "revision": 1}

Fact = tuple[str, dict[str, Any]]
"""Subject and record."""


def of_every_shard() -> Iterator[Fact]:
    """Yield what each shard needs before its first account."""
    yield (
        "site-fact",
        {
            "site_id": SITE,
            "display_name": SITE,
            "zone": ZONE,
            "currency": MONEY,
            "ledger_decimals": 9,
            "minor_decimals": 2,
            "legal_entity": OWNER,
            "cuts_held": False,
            "cuts_per_minute": 30,
            **BOOK,
        },
    )
    for tariff_id, plan in ((FLAT, None), (TOU_LADDER, tou_ladder())):
        yield (
            "tariff-fact",
            {
                "tariff_id": tariff_id,
                "version": 1,
                "kind": "flat" if plan is None else "plan",
                "commodity": ENERGY,
                "currency": MONEY,
                "legal_entity": OWNER,
                "price_micro": PRICE_MICRO if plan is None else 0,
                "plan": plan,
                "effective_at_ms": 0,
                "published_at_ms": 0,
                **BOOK,
            },
        )
    yield (
        "policy-fact",
        {
            "policy_id": POLICY,
            "version": 1,
            "currency": MONEY,
            "alarm_1_nano": 2 * 10**9,
            "alarm_2_nano": 10**9,
            "overdraft_nano": 0,
            "restore_nano": 10**9,
            "lease_ms": 300_000,
            "max_evidence_age_ms": 3_600_000,
            "rules": None,
            "published_at_ms": 0,
            **BOOK,
        },
    )


def of_account(
    number: int, shard: int, *, tariff: str = FLAT, meters: Iterable[int] | None = None
) -> Iterator[Fact]:
    """Yield an account with its credit, and its meters: by default one, of the same number."""
    owned = {
        "site_id": SITE,
        "shard": shard,
        "commodity": ENERGY,
        "currency": MONEY,
        "legal_entity": OWNER,
        "account_id": f"A{number}",
        "account_key": column_key("account", f"A{number}"),
        **BOOK,
    }
    yield (
        "account-fact",
        {
            **owned,
            "subject_id": None,
            "status": "open",
            "tariff_id": tariff,
            "policy_id": POLICY,
            "credited_nano": CREDIT_NANO,
            "held_nano": 0,
            "hold_id": None,
            "keep_power_until_ms": None,
            "thaw_id": None,
            "promise_until_ms": None,
            "notice_id": None,
            "notice_outcome": None,
        },
    )
    for meter in [number] if meters is None else meters:
        yield "meter-fact", {**owned, **_of_meter(meter)}


def _of_meter(number: int) -> dict[str, Any]:
    return {
        "meter_id": f"M{number}",
        "meter_key": meter_key(number),
        "serial": serial(number),
        "gateway_id": "G1",
        "line_id": "L1",
        "unit": 1,
        "profile": "acrel-ddsy1352",
        "ratio": 1,
        "max_power_w": POWER_W_MAX,
        "epoch": 1,
        "is_house": False,
        "opening_register_milli": 0,
        "previous_account_id": None,
        "previous_account_key": None,
        "previous_shard": None,
        "previous_epoch": None,
        "closing_register_milli": None,
        "register_max_milli": None,
        "forced": None,
        "resolves_reading_id": None,
        "resolution": None,
    }


def serial(number: int) -> str:
    """Return the serial number of a meter."""
    return f"{number:012d}"


def meter_key(number: int) -> int:
    """Return the key of a meter."""
    return column_key("meter", f"M{number}")


@cache
def tou_ladder() -> str:
    """Return a plan in which everything happens: five rates, seasons, a ladder, taxes."""
    plan = {
        "zone": ZONE,
        "rates_micro": {
            "sharp": 1_268_500,
            "peak": 1_057_100,
            "flat": 634_200,
            "valley": 267_400,
            "deep_valley": 190_300,
        },
        "seasons": [
            {"name": "summer", "begins": "07-01", "days": _days(_SUMMER)},
            {"name": "all but summer", "begins": "09-01", "days": _days(_ELSE)},
        ],
        "holidays": [f"{year}-{day}" for year in range(2025, 2040) for day in _HOLIDAYS],
        "ladder": {
            "period": "month",
            "steps": [
                {"above_milli": 200_000, "add_micro": 50_000},
                {"above_milli": 400_000, "add_micro": 120_000},
                {"above_milli": 800_000, "add_micro": 300_000},
            ],
        },
        "surcharges": [{"name": "renewable energy fund", "price_micro": 19_000}],
        "taxes": [{"name": "VAT", "ppm": 130_000, "base": ["energy", "surcharges"]}],
    }
    return Plan.model_validate(plan, strict=False).text()


def _days(slots: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "kinds": [kind],
            "slots": [
                {"begins": slot[:5], "rate": slot[6:]} for slot in slots[kind].strip().split(", ")
            ],
        }
        for kind in slots
    ]


_HOLIDAYS = ("01-01", "05-01", "10-01", "10-02", "10-03")
_WEEKEND = (
    "00:00 deep_valley, 06:00 valley, 08:00 flat, 11:00 valley, 14:00 flat, 17:00 peak, "
    "21:00 flat, 23:00 valley"
)
_HOLIDAY = (
    "00:00 deep_valley, 07:00 valley, 09:00 flat, 10:00 deep_valley, 14:00 valley, 17:00 flat, "
    "20:00 peak, 22:00 valley"
)
_SUMMER = {
    "weekday": "00:00 deep_valley, 06:00 valley, 08:00 flat, 09:00 peak, 11:00 valley, "
    "13:00 sharp, 17:00 peak, 20:00 sharp, 22:00 flat",
    "weekend": _WEEKEND,
    "holiday": _HOLIDAY,
}
_ELSE = {
    "weekday": "00:00 deep_valley, 06:00 valley, 08:00 peak, 11:00 valley, 13:00 flat, "
    "17:00 peak, 19:00 sharp, 22:00 flat",
    "weekend": _WEEKEND,
    "holiday": _HOLIDAY,
}
