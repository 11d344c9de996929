"""A gateway: how the meters behind it are reached."""

from services.common.kernel.errors import Bug
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.decisions import (
    Accepted,
    Answers,
    Decision,
    Rejection,
    Request,
    answered,
    stamp,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.sites import GatewayRegistered
from services.vending.domain.site import Site, site_not_found

PROTOCOLS = ("modbus-tcp", "modbus-rtu-over-tcp", "mqtt-acrel")
MQTT = "mqtt-acrel"


@value_class
class Gateway:
    """The folded stream of a gateway."""

    answers: Answers
    gateway_id: str
    site_id: str
    line_id: str
    protocol: str
    address: str


@value_class
class RegisterGateway:
    """A gateway shall exist. `address`: host:port, or product/serial on the broker."""

    request: Request
    gateway_id: str
    site_id: str
    protocol: str
    address: str
    site: Site | None

    def __post_init__(self) -> None:
        """Refuse what no gateway can be."""
        checks.check_id("gateway_id", self.gateway_id)
        checks.check_id("site_id", self.site_id)
        checks.check_choice("protocol", self.protocol, PROTOCOLS)
        if self.protocol == MQTT:
            checks.check_product_serial(self.address)
        else:
            checks.check_host_port(self.address)


def gateway_not_found(gateway_id: str) -> Rejection:
    """Return the refusal of what names a gateway that is not there."""
    text = f"there is no gateway {gateway_id!r}; register it first"
    return Rejection(Reason.GATEWAY_NOT_FOUND, text, "gateway_id")


def decide(state: Gateway | None, command: RegisterGateway) -> Decision:
    """Return what registering does, or why nothing may happen."""
    if state:
        return answered(state.answers, command.request) or Rejection(
            Reason.ALREADY_EXISTS,
            f"gateway {command.gateway_id} is registered already; choose another gateway_id",
            "gateway_id",
        )
    if command.site is None:
        return site_not_found(command.site_id)
    registered = GatewayRegistered(
        **stamp(command.request),
        gateway_id=command.gateway_id,
        site_id=command.site_id,
        line_id=command.gateway_id,  # a gateway is one line: a socket, or a session on the broker
        protocol=command.protocol,
        address=command.address,
    )
    return Accepted((registered,))


def evolve(state: Gateway | None, event: Event) -> Gateway:
    """Return the gateway after an event of its stream."""
    if state is not None or not isinstance(event, GatewayRegistered):
        raise Bug(f"{event.SUBJECT} does not belong into a gateway's stream here")
    return Gateway(
        Answers().after(event),
        event.gateway_id,
        event.site_id,
        event.line_id,
        event.protocol,
        event.address,
    )
