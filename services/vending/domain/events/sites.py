"""Sites, their gateways, and who holds their cuts back."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class SiteRegistered(Event):
    SUBJECT: ClassVar[str] = "site-registered"

    site_id: str
    display_name: str
    zone: str
    currency: str
    ledger_decimals: int
    minor_decimals: int
    legal_entity: str
    cuts_per_minute: int


@named_value_class
class CutsHeld(Event):
    SUBJECT: ClassVar[str] = "cuts-held"

    site_id: str
    reason: str


@named_value_class
class CutsReleased(Event):
    SUBJECT: ClassVar[str] = "cuts-released"

    site_id: str
    reason: str


@named_value_class
class SitePlaced(Event):
    SUBJECT: ClassVar[str] = "site-placed"

    site_id: str
    parent_site_id: str | None
    reason: str


@named_value_class
class GatewayRegistered(Event):
    SUBJECT: ClassVar[str] = "gateway-registered"

    gateway_id: str
    site_id: str
    line_id: str
    protocol: str
    address: str
