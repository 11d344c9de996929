"""An MQTT broker on loopback: Mosquitto where it is installed, else amqtt (pure Python).

Both keep the sessions of clients with `clean_session=False` between connections: QoS 1 messages
wait for them, and unacknowledged ones come again. Mosquitto keeps them over its own restart too
(over a crash as of its last save, a second ago at most); amqtt keeps them in memory only
(amqtt_broker.py says what it was taught and what it cannot do).
"""

import asyncio
import contextlib
import os
import shutil
import sys
from enum import StrEnum
from pathlib import Path

from tools.stack.errors import SettingError
from tools.stack.ports import LOOPBACK, Ports
from tools.stack.process import ProcessSpec, Restart

PROBE_TIMEOUT_S = 2.0
# CONNECT, protocol MQTT 3.1.1, clean session, keep alive 10 s, client id "probe".
CONNECT = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x0a\x00\x05probe"
CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
DISCONNECT = b"\xe0\x00"

MOSQUITTO_CONF = """\
listener {port} {host}
allow_anonymous true
persistence true
persistence_location {data}/
# The store is written at this interval and at the end.
autosave_interval 1
max_queued_messages 100000
max_inflight_messages 1000
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
"""


class Broker(StrEnum):
    """Which broker runs."""

    MOSQUITTO = "mosquitto"
    AMQTT = "amqtt"


BROKER_SETTING = "WATTVEND_STACK_MQTT_BROKER"


def choose_broker() -> Broker:
    """Return the broker a person chose, else Mosquitto where it is installed, else amqtt."""
    installed = mosquitto_path() is not None
    text = os.environ.get(BROKER_SETTING) or (Broker.MOSQUITTO if installed else Broker.AMQTT)
    try:
        broker = Broker(text)
    except ValueError:
        choices = " or ".join(Broker)
        raise SettingError(f"{BROKER_SETTING} is {text!r}; it must be {choices}") from None
    if broker is Broker.MOSQUITTO and not installed:
        raise SettingError(
            f"{BROKER_SETTING} is mosquitto, which is not installed; install it (on Debian: "
            "apt-get install mosquitto) or unset the setting"
        )
    return broker


def mosquitto_path() -> str | None:
    # Debian puts it where an ordinary user's PATH does not look.
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def mqtt_spec(
    directory: Path, ports: Ports, broker: Broker, restart: Restart | None
) -> ProcessSpec:
    """Write the broker's files below `directory` and return how to run it."""
    home = directory / "mqtt"
    home.mkdir(parents=True, exist_ok=True)
    if broker is Broker.MOSQUITTO:
        argv = mosquitto_argv(home, ports.mqtt)
    else:
        argv = (sys.executable, "-m", "tools.stack.amqtt_broker", LOOPBACK, str(ports.mqtt))

    async def ready() -> bool:
        return await accepts(LOOPBACK, ports.mqtt)

    return ProcessSpec(
        name="mqtt",
        argv=argv,
        ready=ready,
        cwd=Path(__file__).parents[2],
        restart=restart,
        address=f"mqtt://{LOOPBACK}:{ports.mqtt} ({broker})",
    )


def mosquitto_argv(home: Path, port: int) -> tuple[str, ...]:
    path = mosquitto_path()
    assert path is not None
    data = home / "data"
    data.mkdir(exist_ok=True)
    text = MOSQUITTO_CONF.format(port=port, host=LOOPBACK, data=data)
    if os.geteuid() == 0:
        # Else it becomes the user `mosquitto`, who cannot write here.
        text += "user root\n"
    conf = home / "mosquitto.conf"
    conf.write_text(text, "utf-8")
    return (path, "-c", str(conf))


async def accepts(host: str, port: int) -> bool:
    """Say whether a broker accepts a client there."""
    writer = None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(CONNECT)
            answer = await reader.readexactly(len(CONNACK_ACCEPTED))
            writer.write(DISCONNECT)
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return answer == CONNACK_ACCEPTED
