"""The site of the local stack and the demo: the virtual fleet's, with a price and a policy.

`python -m tools.mall DIRECTORY` writes its files, for a fleet and an operator elsewhere.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from tools import sitefile
from tools.fleet.config import FleetConfig, Protocol
from tools.fleet.site import as_yaml, make_site
from tools.stack.ports import Ports

SITE = "mall-1"
TARIFF = "shops"
POLICY = "shops"
METERS = 44
SEED = 11
PRICE_MICRO = 850_000
"""0.85 CNY a kWh."""

MAX_POWER_W = 100_000_000
"""The physical bound of what hangs behind a meter: its loads are scaled up, so is the bound."""

ALARM_1_MINOR = 800
ALARM_2_MINOR = 400
RESTORE_MINOR = 100


def site_file(fleet: FleetConfig) -> sitefile.SiteFile:
    """Return what an operator registers of a fleet whose Modbus gateways have fixed ports."""
    return sitefile.SiteFile(
        site=sitefile.Site(
            id=SITE,
            name="Demo mall",
            zone=fleet.zone,
            currency="CNY",
            legal_entity="property-co",
        ),
        gateways=[
            sitefile.Gateway(
                id=gateway.id,
                protocol=gateway.protocol,
                address=f"{gateway.product}/{gateway.serial}"
                if gateway.protocol is Protocol.MQTT_ACREL
                else f"127.0.0.1:{gateway.port}",
            )
            for gateway in fleet.gateways
        ],
        meters=[
            sitefile.Meter(
                id=meter.id,
                serial=meter.serial,
                gateway=meter.gateway,
                unit=meter.unit,
                profile=meter.profile,
                ratio=meter.ct * meter.pt,
                max_power_w=MAX_POWER_W,
            )
            for meter in fleet.meters
        ],
        tariffs=[sitefile.Tariff(id=TARIFF, price_micro=PRICE_MICRO)],
        policies=[
            sitefile.Policy(
                id=POLICY,
                alarm_1_minor=ALARM_1_MINOR,
                alarm_2_minor=ALARM_2_MINOR,
                restore_minor=RESTORE_MINOR,
            )
        ],
    )


def write(directory: Path, line_ports: Sequence[int]) -> Path:
    """Write fleet.yaml for the virtual fleet (its path is returned) and site.yaml for operators.

    `line_ports`: those of the fleet's Modbus gateways.
    """
    fleet = make_site(METERS, seed=SEED, modbus_ports=line_ports)
    path = directory / "fleet.yaml"
    path.write_text(as_yaml(fleet.model_copy(update={"load_on": True})), "utf-8")
    site = site_file(fleet).model_dump(mode="json", exclude_none=True)
    (directory / "site.yaml").write_text(yaml.safe_dump(site, sort_keys=False), "utf-8")
    return path


if __name__ == "__main__":
    write(Path(sys.argv[1]), Ports().fleet_lines)
