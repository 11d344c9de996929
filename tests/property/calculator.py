"""A calculator of charges that knows nothing but their explanations, as `--json` prints them.

It computes every figure of a charge again: its energy from both readings and the ratio, its lines
from the plans of the versions it names, their amounts from the ladder's totals it names, and the
amount from the lines. What plans mean, it takes from the scalar model. Raises AssertionError where
an explanation does not add up, KeyError where it does not tell enough.
"""

from typing import Any

from tests.property.metering_policy_model import Standing, refusal
from tests.property.metering_tariff_model import (
    PERIOD_CLOSED,
    RATES,
    TOTAL,
    Accumulation,
    End,
    Tariff,
    Terms,
    Where,
    half_up,
)

Told = dict[str, Any]
"""A message as JSON: 64-bit integers are texts."""


def amount_of(told: Told) -> int:
    """Return what the charge comes to, in nano."""
    charge = told["charge"]
    start, first = _reading(charge["from_reading"])
    end, last = _reading(charge["to_reading"])
    counted = 0 if charge["kind"] == "re-split" else last - first
    if charge["kind"] == "rollover":
        counted += int(told["register_max_milli"]) + 1
    energy = counted * int(charge["ratio"])
    assert energy == int(charge["energy_milli"])
    if not charge["tariff"]:
        assert not charge["lines"]
        return 0
    tariff = _tariff(told)
    if charge["kind"] == "fee":
        return sum(_fee(tariff.terms(line["version"]), line) for line in charge["lines"])
    if charge["kind"] == "re-split":
        parts = _moved(tariff, told)
    elif charge["kind"] == "rollover":  # registers of rates fell too, so time tells
        parts = tariff.split(start or end, end, energy)
    else:
        ends = _end(charge["from_reading"], start or end), _end(charge["to_reading"], end)
        parts, _ = tariff.shape(*ends, int(charge["ratio"]))
    if not charge["lines"] and charge["kind"] != "re-split":
        ((version, rate, _),) = parts
        assert version == charge["tariff_version"]
        price = tariff.terms(version).price(rate)
        assert price == int(charge["price_micro"])
        return energy * price
    return sum(_line_amounts(tariff, charge["lines"], parts))


def reason_of(told: Told) -> str:
    """Return the first reason not to cut by which an account in arrears was judged, or nothing."""
    decision, orders = told["decision"], {order["type"]: order for order in told["orders"]}
    policy = {**told["policy"], "rules": told["policy"].get("rules")}
    policy["max_evidence_age_ms"] = int(policy["max_evidence_age_ms"])
    account = {
        f"{what}_until_ms": int(orders.get(kind, {}).get("until_ms", 0)) or None
        for what, kind in (("keep_power", "power-kept"), ("promise", "payment-promised"))
    }
    reading = {
        "received_at_ms": int(decision["reading_received_at_ms"]),
        "began_at_ms": int(decision["reading_began_at_ms"]),
        "device_time_ms": int(told["charge"]["to_reading"]["device_time_ms"]),
        "quality": ord(told["charge"]["to_reading"]["quality"]),
    }
    now = int(decision["decided_at_ms"])
    forced = [order["position"] for order in told["orders"] if order["type"] == "relay-forced"]
    notice_at = int(told["notice"]["decided_at_ms"]) if "notice" in told else None
    outcome = decision["notice_outcome"] or None
    standing = Standing(
        int(decision["arrears_since_ms"]),
        bool(forced) and all(forced),
        notice_at,
        outcome,
        was_silent="silent_since_ms" in told,
    )
    return refusal(policy, account, reading, standing, now)


def _fee(terms: Terms, line: Told) -> int:
    """Return what a line of fees comes to: so many periods, or a share of one."""
    fee = terms.plan.fees[int(line["rate"].removeprefix("fee-")) - 1]
    taxes = [half_up(fee.amount_micro * t.ppm, 10**6) for t in terms.plan.taxes if "fees" in t.base]
    days, days_of = line["days"], line["days_of"]
    figures = [micro * 1000 * days // days_of for micro in (fee.amount_micro, sum(taxes))]
    assert figures == [int(line["rate_nano"]), int(line["tax_nano"])]
    return sum(figures)


def _moved(tariff: Tariff, told: Told) -> dict[Where, int]:
    """Return what a late reading moves between the parts of the interval that it lies in."""
    charge = told["charge"]
    ratio = int(charge["ratio"])
    readings = (charge["from_reading"], charge["to_reading"], told["until_reading"])
    begin, late, until = (_end(reading, _reading(reading)[0]) for reading in readings)
    before, _ = tariff.shape(begin, until, ratio)
    after: dict[Where, int] = {}
    for half in ((begin, late), (late, until)):
        for where, energy in tariff.shape(*half, ratio)[0].items():
            after[where] = after.get(where, 0) + energy
    moved = {where: after.get(where, 0) - energy for where, energy in before.items()}
    moved |= {where: energy for where, energy in after.items() if where not in before}
    return {where: energy for where, energy in moved.items() if energy}


def _line_amounts(tariff: Tariff, lines: list[Told], parts: dict[Where, int]) -> list[int]:
    """Return the amount of each line, once its figures are computed again."""
    waiting = list(parts.items())
    amounts = []
    energy = rate = 0
    for line in lines:
        terms = tariff.terms(line["version"])
        followed = line["rate"] == "none"
        if not followed:
            where, energy = waiting.pop(0)
            rate = where[1]
            assert (line["version"], RATES.index(line["rate"])) == where[:2]
            assert line["period"] == where[2] or int(line["basis"]) & PERIOD_CLOSED
        mine = 0 if followed else energy
        assert int(line["energy_milli"]) == mine
        figures = _figures(terms, line, rate, energy, followed=followed)
        assert figures == tuple(
            int(line[f"{name}_nano"]) for name in ("rate", "surcharge", "ladder", "tax")
        )
        amounts.append(sum(figures))
    assert not waiting, "a part of the interval has no line"
    return amounts


def _figures(
    terms: Terms, line: Told, rate: int, energy: int, *, followed: bool
) -> tuple[int, int, int, int]:
    ladder = ladder_tax = 0
    if line["days_of"]:
        share = Accumulation(0, 0, line["days"], line["days_of"])
        counted = terms.steps(rate)
        key = TOTAL if counted and counted[0] == TOTAL else rate
        total, base = int(line["total_milli"]), int(line["base_milli"])
        # What the ladder and its tax come to at each total, and with which sign it counts.
        at = [(1, total), (-1, total - energy)]
        if followed:  # a lower version's energy raised the base below this one's own
            at += [(-1, base), (1, base - energy)]
        for sign, x in at:
            ladder += sign * terms.ladder_at(key, x, share)[0]
            ladder_tax += sign * terms.ladder_at(key, x, share)[1]
    if followed:
        return 0, 0, ladder, ladder_tax
    taxed = energy * terms.tax(rate) + ladder_tax
    return energy * terms.price(rate), energy * terms.surcharge, ladder, taxed


def _tariff(told: Told) -> Tariff:
    return Tariff(
        {
            version["version"]: {
                "price_micro": int(version["price_micro"]),
                "plan": version.get("plan"),
                "effective_at_ms": int(version["effective_at_ms"]),
            }
            for version in told["tariffs"]
        }
    )


def _end(reading: Told, time_ms: int) -> End:
    rates = tuple(map(int, reading["rate_registers_milli"])) or (-1,) * len(RATES)
    return time_ms, int(reading["register_milli"]), rates


def _reading(reading: Told) -> tuple[int, int]:
    return int(reading["device_time_ms"]), int(reading["register_milli"])
