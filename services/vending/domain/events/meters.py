"""Meters: whose they are, and which device, ratio and relay they have."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class MeterRegistered(Event):
    SUBJECT: ClassVar[str] = "meter-registered"

    meter_id: str
    meter_key: int
    serial: str
    site_id: str
    gateway_id: str
    line_id: str
    unit: int
    profile: str
    commodity: str
    ratio: int
    max_power_w: int | None
    house_account_id: str
    house_shard: int
    currency: str
    legal_entity: str
    max_power_source: str | None
    register_max_milli: int | None


@named_value_class
class MeterAssigned(Event):
    SUBJECT: ClassVar[str] = "meter-assigned"

    meter_id: str
    epoch: int
    account_id: str
    is_house: bool
    shard: int
    register_milli: int
    register_source: str
    previous_account_id: str
    previous_shard: int


@named_value_class
class MeterReplaced(Event):
    SUBJECT: ClassVar[str] = "meter-replaced"

    meter_id: str
    epoch: int
    serial: str
    previous_serial: str
    line_id: str
    unit: int
    previous_unit: int
    profile: str
    ratio: int
    max_power_w: int | None
    max_power_source: str | None
    register_max_milli: int | None
    closing_register_milli: int
    opening_register_milli: int
    reason: str


@named_value_class
class MeterRatioChanged(Event):
    SUBJECT: ClassVar[str] = "meter-ratio-changed"

    meter_id: str
    epoch: int
    ratio: int
    previous_ratio: int
    max_power_w: int | None
    max_power_source: str | None
    register_milli: int
    register_source: str
    reason: str


@named_value_class
class MeterHoldResolved(Event):
    SUBJECT: ClassVar[str] = "meter-hold-resolved"

    meter_id: str
    epoch: int
    reading_id: str
    resolution: str
    reason: str


@named_value_class
class RelayForced(Event):
    SUBJECT: ClassVar[str] = "relay-forced"

    meter_id: str
    position: str
    reason: str
    closing_id: str | None
