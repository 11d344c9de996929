"""What meters and gateways say, written down by hand, and the facts of a small site."""

import json
from typing import Any

from services.common.kernel.ids import column_key
from tests.records import unsaid

SITE = {
    "site_id": "S1",
    "display_name": "Mall",
    "zone": "Asia/Shanghai",
    "currency": "CNY",
    "ledger_decimals": 9,
    "minor_decimals": 2,
    "legal_entity": "E1",
    "cuts_held": False,
    "cuts_per_minute": 60,
    "book_epoch": 1,
    "revision": 0,
}

# DDSY1352, 0x0200 x 48, as its manual and two public readers lay it out.
LIVE_BLOCK = (
    "0007"  # 0x0200 device type
    "08fc00000000"  # Ua 230.0 V
    "01f400000000"  # Ia 5.00 A
    "047e00000000047e"  # Pa, Ptotal 1.150 kW
    "0000000000000000"  # Q
    "03de0000000003de"  # PFa, PFtotal 0.990
    "0001000a"  # PT 1, CT 10
    "0001e240"  # 0x0215 total 1234.56 kWh
    "00000064000000c80000012c00000190"  # sharp 1.00, peak 2.00, flat 3.00, valley 4.00
    "fffffff6"  # remaining -0.10
    "0001"  # purchases
    "00000000"  # load limit
    "2000"  # 0x0224 relay L1 closed
    "0000"
    "00000000"  # base
    "1a0b17010f2815"  # byte 80: 2026-11-23, Monday, 15:40:21
    "000000000000000000"
)
LIVE_WORDS = tuple(int(LIVE_BLOCK[at : at + 4], 16) for at in range(0, len(LIVE_BLOCK), 4))
LIVE_TIME_MS = 1_795_419_621_000
"""2026-11-23 15:40:21 in Shanghai."""
SERIAL_WORDS = (0x2304, 0x1100, 0x0042)
SERIAL = "230411000042"


def gateway_fact(
    gateway_id: str = "G1", *, protocol: str = "modbus-tcp", address: str = "127.0.0.1:1502"
) -> dict[str, Any]:
    return {
        "gateway_id": gateway_id,
        "site_id": "S1",
        "line_id": f"line-{gateway_id}",
        "protocol": protocol,
        "address": address,
        "book_epoch": 1,
        "revision": 0,
    }


def meter_fact(meter_id: str = "M1", **changed: Any) -> dict[str, Any]:
    gateway_id = changed.get("gateway_id", "G1")
    return {
        **unsaid("meter-fact"),
        "meter_id": meter_id,
        "meter_key": column_key("meter", meter_id),
        "serial": SERIAL,
        "site_id": "S1",
        "gateway_id": gateway_id,
        "line_id": f"line-{gateway_id}",
        "unit": 1,
        "profile": "acrel-ddsy1352",
        "commodity": "electricity",
        "ratio": 10,
        "epoch": 0,
        "account_id": f"house:{meter_id}",
        "account_key": 5,
        "is_house": True,
        "shard": 3,
        "currency": "CNY",
        "legal_entity": "E1",
        "book_epoch": 1,
        "revision": 0,
        **changed,
    }


def data_message(**changed: Any) -> dict[str, Any]:
    message = {
        "type": "data",
        "time": "20261123154021",
        "gwSN": "12308017890017",
        "meterSN": "77001",
        "meterName": "shop 7",
        "meterStatus": "normal",
        "ch": 1,
        "ua": 230.1,
        "ub": 0,
        "uc": 0,
        "ia": 5.25,
        "ib": 0,
        "ic": 0,
        "pa": 1.207,
        "p": 1.207,
        "pf": 0.999,
        "pt": 1,
        "ct": 20,
        "wh": 1234.56,
        "relay": 1,
        **changed,
    }
    return {name: value for name, value in message.items() if value is not ...}


def data_topic(serial: str = "12308017890017") -> str:
    return f"/gw/acrelHW/AWT100/data/{serial}"


def encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()
