"""Runs of the engine: what it sends and where it ends, in plain values that can be compared.

Also the settings of Hypothesis for the laws of metering:

    WATTVEND_PROPERTY_EXAMPLES=5000   examples a law (default: each law's own, some dozens or
                                      hundreds); with pytest --timeout=3600, for they take long
    pytest --hypothesis-seed=N        the same examples again; without it every run draws others
    pytest -k <law>                   a failure prints its operations: put them into
                                      test_metering_cases.py as a case that stays
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from services.common.kernel.frames import CHARGE_COLUMNS, LINE_COLUMNS, ChargeFrame
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import Absorbed, LogRecord, Output
from services.metering.domain.rows import (
    FLAGS,
    HABITS,
    HELD,
    HOLDS,
    METER,
    NEVER_MS,
    NO_POWER,
    NOT_DUE_MS,
    STAND,
    parsed_accounts,
    windows_in,
)
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import rows_of
from tests.property.metering_histories import SHARD

_TOTALS = (
    *("level", "house", "known", "frozen", "closed", "refusal", "revision"),
    *("book_epoch", "credited_nano", "held_nano", "charged_nano", "sequence"),
)
_EXAMPLES = os.environ.get("WATTVEND_PROPERTY_EXAMPLES")


def examples(count: int) -> settings:
    """Return the profile of a law: `count` examples, or as many as the environment asks for."""
    return settings(
        max_examples=int(_EXAMPLES) if _EXAMPLES else count,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def charges_of(output: Output) -> list[dict[str, Any]]:
    """Return the charges of a charge-frame output, names resolved, each with its lines."""
    frame = ChargeFrame.from_record(output.record)
    names = [name for name, _, _ in LINE_COLUMNS if name != "charge"]
    charges = []
    for number, row in enumerate(frame.rows):
        charge: dict[str, Any] = {}
        for name, _, kind in CHARGE_COLUMNS:
            if kind == "V16":
                charge[name] = row[name].tobytes()
            elif name.endswith("_name"):
                charge[name] = frame.names[row[name]]
            else:
                charge[name] = row[name].tolist()
        mine = frame.lines[frame.lines["charge"] == number]
        charge["lines"] = [{name: line[name].item() for name in names} for line in mine]
        charges.append(charge)
    return charges


def plain(output: Output) -> dict[str, Any]:
    """Return an output without its ids, as the scalar model gives it."""
    # Rows are the engine's own.
    record = {key: value for key, value in output.record.items() if key not in ("alarm_id", "row")}
    if output.subject == "charge-frame":
        record = {name: record[name] for name in ("shard", "log_offset", "names")}
        record["rows"] = charges_of(output)
    return {"topic": output.topic, "key": output.key, "route": output.route, "record": record}


def run(state: ShardState, records: Iterable[LogRecord]) -> list[Absorbed]:
    return [absorb(state, record) for record in records]


def outputs_of(absorbed: Sequence[Absorbed]) -> list[Output]:
    return [output for done in absorbed for output in done.outputs]


def fresh_run(records: Iterable[LogRecord]) -> tuple[ShardState, list[Absorbed]]:
    state = ShardState.empty(SHARD)
    return state, run(state, records)


def totals(state: ShardState) -> dict[int, dict[str, Any]]:
    """Return what the account rows of `state` say, by account key; offsets left out."""
    _, rows, _ = rows_of(state)
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        parsed = parsed_accounts([row.value])
        account = parsed.accounts[0]
        found[int(account["key"])] = {
            **{name: account[name].item() for name in _TOTALS},
            "components": tuple(parsed.components[0].tolist()),
            "published_at_ms": _or_none(account["published_at_ms"], NEVER_MS),
            "due_ms": _or_none(account["due_ms"], NOT_DUE_MS),
            "last_received_at_ms": _or_none(account["last_received_at_ms"], NEVER_MS),
            "since_ms": _or_none(account["since_ms"], NEVER_MS),
            "arrears_since_ms": _or_none(account["arrears_since_ms"], NEVER_MS),
            "notice_at_ms": _or_none(account["notice_at_ms"], NEVER_MS),
            "fees_until_ms": _or_none(account["fees_until_ms"], NEVER_MS),
            "fees_due_ms": _or_none(account["fees_due_ms"], NOT_DUE_MS),
            "fees_sequence": account["fees_sequence"].item(),
            "accumulations": {
                tuple(int(each[name]) for name in ("owner", "period", "version", "rate")): tuple(
                    int(each[name]) for name in ("base_milli", "total_milli", "days", "days_of")
                )
                for each in parsed.accumulations
            },
            "meters": {
                int(meter["key"]): _meter(meter, *tail)
                for meter, *tail in zip(
                    parsed.meters,
                    parsed.windows,
                    parsed.held,
                    parsed.waiting,
                    parsed.habits,
                    parsed.stands,
                    strict=True,
                )
            },
        }
    return found


def _meter(
    meter: Any, windows: bytes, held: bytes, waiting: bytes, habits: bytes, stand: bytes
) -> dict[str, Any]:
    named = ("epoch", "ratio", "serial", "quality", "time_ms", "sequence", "since_ms")
    orders = ("forced", "relay")
    return {
        **{name: meter[name].item() for name in (*named, *orders, "energy_total_milli")},
        "register_milli": meter["register_milli"].item() if meter["opened"] else None,
        "reading_id": meter["reading_id"].tobytes(),
        "max_power_w": _or_none(meter["max_power_w"], NO_POWER),
        "send_before_ms": _or_none(meter["send_before_ms"], NEVER_MS),
        "windows": [(*w[:4], w[4:9], w[9:]) for w in windows_in(meter["windows"].item(), windows)],
        "rates_milli": tuple(meter["rates_milli"].tolist()),
        "hold": HOLDS[meter["hold"]],
        "held": [*HELD.iter_unpack(held)],
        "waiting": _waiting(waiting),
        "stand": [*STAND.iter_unpack(stand)],
        "habits": [*HABITS.iter_unpack(habits)],
        "flags": {flag for bit, flag in enumerate(FLAGS) if meter["flags"] >> bit & 1},
        "relay_bits": meter["relay_bits"].item(),
        "silent_at_ms": _or_none(meter["silent_at_ms"], NOT_DUE_MS),
    }


def _waiting(packed: bytes) -> list[tuple[Any, ...]]:
    """Return (epoch, register, charges of that epoch, what is held) where a closing waits."""
    if not packed:
        return []
    (before,) = np.frombuffer(packed[: METER.itemsize], METER)
    stood = (before[name].item() for name in ("epoch", "register_milli", "sequence"))
    return [(*stood, HELD.unpack(packed[METER.itemsize :]))]


def _or_none(value: Any, never: int) -> int | None:
    return None if int(value) == never else int(value)
