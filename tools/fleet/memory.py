"""What the meters had counted when the fleet last ran: a register never goes back.

A meter counts on where it stood, however often the process that plays it is started.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from tools.fleet.config import FleetConfig
from tools.fleet.errors import ConfigError


def remembered(config: FleetConfig, path: Path) -> FleetConfig:
    """Return the configuration with the registers of the last run. Raises ConfigError."""
    if not path.exists():
        return config
    try:
        kept = json.loads(path.read_text("utf-8"))
        meters = [
            meter.model_copy(update={"register_lsb": int(kept.get(meter.id, meter.register_lsb))})
            for meter in config.meters
        ]
    except (OSError, ValueError, TypeError, AttributeError) as wrong:
        raise ConfigError(
            f"{path} does not hold registers ({wrong}): delete it, and the meters begin anew"
        ) from wrong
    return config.model_copy(update={"meters": tuple(meters)})


def remember(registers_lsb: Mapping[str, int], path: Path) -> None:
    """Write meter → register (0.01 kWh secondary), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(registers_lsb), "utf-8")
    draft.replace(path)
