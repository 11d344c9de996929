"""The facts of a site for metering: what vending would tell of it, without vending."""

from collections.abc import Iterator
from typing import Any

from services.common.kernel.ids import column_key

SITE, TARIFF, POLICY = "bench", "bench", "bench"
ENERGY, MONEY, OWNER = "electricity", "CNY", "bench"
PRICE_MICRO = 500_000
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
            "zone": "UTC",
            "currency": MONEY,
            "ledger_decimals": 9,
            "minor_decimals": 2,
            "legal_entity": OWNER,
            "cuts_held": False,
            "cuts_per_minute": 30,
            **BOOK,
        },
    )
    yield (
        "tariff-fact",
        {
            "tariff_id": TARIFF,
            "version": 1,
            "kind": "flat",
            "commodity": ENERGY,
            "currency": MONEY,
            "legal_entity": OWNER,
            "price_micro": PRICE_MICRO,
            "plan": None,
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
            "published_at_ms": 0,
            **BOOK,
        },
    )


def of_account(number: int, shard: int) -> Iterator[Fact]:
    """Yield an account with its credit, and its meter."""
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
            "tariff_id": TARIFF,
            "policy_id": POLICY,
            "credited_nano": CREDIT_NANO,
            "held_nano": 0,
            "hold_id": None,
        },
    )
    yield (
        "meter-fact",
        {
            **owned,
            "meter_id": f"M{number}",
            "meter_key": meter_key(number),
            "serial": serial(number),
            "gateway_id": "G1",
            "line_id": "L1",
            "unit": 1,
            "profile": "acrel-ddsy1352",
            "ratio": 1,
            "max_power_w": None,
            "epoch": 1,
            "is_house": False,
            "opening_register_milli": 0,
            "previous_account_id": None,
            "previous_account_key": None,
            "previous_shard": None,
            "previous_epoch": None,
            "closing_register_milli": None,
        },
    )


def serial(number: int) -> str:
    """Return the serial number of a meter."""
    return f"{number:012d}"


def meter_key(number: int) -> int:
    """Return the key of a meter."""
    return column_key("meter", f"M{number}")
