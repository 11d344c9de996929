"""`python -m tools.bench.per_record KAFKA RUN FOLDER`: readings charged as faust's manual shows it.

What frames are held against: a reading a message, in JSON; of each, the register in a table, a
charge at a flat price, and both sent. That is all: no accounts, no validation, no policy, and
nothing waits for an acknowledgement. Each run is an application of its own: where faust starts
again with readings that wait it may skip some of them, and the run would not end.
"""

import sys
from pathlib import Path
from typing import Any

import faust
from faust.types import StreamT

from tools.bench.site import PRICE_MICRO

PARTITIONS = 8


def topics_of(run: str) -> tuple[str, str]:
    """Return the names of the topics of readings and of charges."""
    return f"bench-readings-{run}", f"bench-charges-{run}"


class Reading(faust.Record):
    """A register of a meter."""

    meter: str
    register_milli: int


class Charge(faust.Record):
    """What was used between two registers, and what it costs."""

    meter: str
    from_milli: int
    to_milli: int
    amount_nano: int


def build(bootstrap: str, run: str, directory: Path) -> faust.App:
    """Return the app, not started; what it writes lies below the directory."""
    app = faust.App(
        f"bench-per-record-{run}",
        broker=f"kafka://{bootstrap}",
        topic_partitions=PARTITIONS,
        datadir=directory,
        web_enabled=False,
    )
    of_readings, of_charges = topics_of(run)
    readings = app.topic(of_readings, value_type=Reading)
    charges = app.topic(of_charges, value_type=Charge)
    registers: Any = app.Table("registers", default=int)

    async def charge(stream: StreamT[Reading]) -> None:
        async for reading in stream:
            from_milli = registers[reading.meter]
            amount_nano = (reading.register_milli - from_milli) * PRICE_MICRO
            registers[reading.meter] = reading.register_milli
            charged = Charge(reading.meter, from_milli, reading.register_milli, amount_nano)
            await charges.send(key=reading.meter, value=charged)

    app.agent(readings)(charge)
    return app


if __name__ == "__main__":
    app = build(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    faust.Worker(app, loglevel="warning").execute_from_commandline()
