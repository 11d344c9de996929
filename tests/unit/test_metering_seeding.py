"""Goal: what a seeded shard holds, it holds for a reason that is true.

Method: a shard of facts alone; that what was posted goes on as it was stands in the property tests.
"""

from services.metering.domain.seeding import Seeds, entity_of, seeded
from services.metering.domain.shard_rows import shard_of_rows
from tests.unit.metering_log import SHARD, START_MS, Log, charges, house, meter, site

HOUR_MS = 3_600_000
POWER_W = 10_000
SINCE_LAST_YEAR_MILLI = 4_000_000
"""4 MWh: months of a house, and more than a week of its load, which is 1.68 MWh."""


def test_a_house_that_begins_again_is_not_held_for_what_it_used_since() -> None:
    at_home = meter("M1", house("M1"), max_power_w=POWER_W, opening_register_milli=1_000)
    facts = {
        entity_of(subject, fact): [fact]
        for subject, fact in (("site-fact", site()), ("meter-fact", at_home))
    }
    fact_rows, rows, end = seeded(Seeds(SHARD, [], facts, {}), [], 100, START_MS)
    log = Log(shard_of_rows(SHARD, [*fact_rows, *rows, end]))
    (charge,) = charges(log.later(HOUR_MS).use(1_000 + SINCE_LAST_YEAR_MILLI))
    assert charge["energy_milli"] == SINCE_LAST_YEAR_MILLI
