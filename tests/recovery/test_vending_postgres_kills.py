"""Goal: also where the book stands on PostgreSQL a receipt is in it, once, however vending died.

Method: as test_vending_kills.py: the same tills, the same judge; the book is read from the database
that the shop's store is. A killed vending is started again at once: its session's lock must go with
it.
"""

import random
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from services.vending.adapters import stores
from services.vending.domain.event_store import FROM_START, StoredEvent
from tests.contract.databases import fresh_database
from tests.recovery import bus
from tests.recovery.faults import Fault, rounds
from tests.recovery.test_vending_kills import (
    HIT_MAX,
    SALES_A_LIFE_MAX,
    SEED,
    TILLS,
    WRITERS,
    furnished,
    tills_of,
)
from tests.recovery.vending_judge import TOPICS, judge_sales, requests_in
from tests.recovery.vending_shop import Shop, Till, until_sold
from tests.recovery.verdict import Verdict
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

BOUNDARIES = ("decided", "committed", "answering")
"""A sale's commit is one call: there is nothing between its statements and its end."""
RANDOM_KILLS = 3
EVENTS_MAX = 1_000_000


@pytest.fixture
async def shop(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[Shop]:
    await bus.fresh(stack.kafka_bootstrap, TOPICS)
    async with fresh_database(stack.postgres_dsn) as address:
        shop = Shop(stack.kafka_bootstrap, tmp_path, store=address)
        yield shop
        shop.worker.end()


async def book(shop: Shop) -> list[StoredEvent]:
    async with stores.reading(shop.store, "judge") as stored:
        return await stored.store.read_all(FROM_START, EVENTS_MAX)


async def judged(shop: Shop, tills: Sequence[Till]) -> Verdict:
    """Ask the running vending, kill it, and judge what it said and left."""
    credited = await shop.credited(tills)
    await shop.worker.kill()
    return judge_sales(await book(shop), tills, credited)


@pytest.mark.fault("vending-on-postgresql-killed-at-each-boundary")
async def test_killed_at_each_boundary_each_receipt_is_in_the_database_once(
    shop: Shop, fault: Fault
) -> None:
    chance = random.Random(SEED)
    tills = tills_of(TILLS)
    await furnished(shop, tills)
    async with shop.selling(tills):
        for _ in rounds(1):
            await until_sold(tills, more=10 * TILLS)
            await shop.worker.kill()  # after a reply
            fault.tried += 1
            for boundary in BOUNDARIES:
                shop.worker.start(boundary, hit=chance.randint(1, HIT_MAX))
                await shop.worker.wait_ended()
                fault.tried += 1
            unanswered = {key for till in tills for key in till.unanswered}
            assert unanswered & requests_in(await book(shop)), "no reply was lost"
            shop.worker.start()
    assert shop.worker.codes == {-signal.SIGKILL: fault.tried}, shop.worker.log_end
    (await judged(shop, tills)).count(fault)


@pytest.mark.fault("vending-on-postgresql-killed-among-32-writers")
async def test_killed_at_random_among_32_writers_each_receipt_is_in_the_database_once(
    shop: Shop, fault: Fault
) -> None:
    chance = random.Random(SEED)
    tills = tills_of(WRITERS)
    await furnished(shop, tills)
    async with shop.selling(tills):
        for _ in rounds(RANDOM_KILLS):
            await until_sold(tills, more=chance.randint(1, SALES_A_LIFE_MAX))
            await shop.worker.kill()
            fault.tried += 1
            shop.worker.start()
    (await judged(shop, tills)).count(fault)


async def test_answering_before_postgresql_has_it_loses_what_a_customer_was_told(
    shop: Shop,
) -> None:
    till = Till("till-0", ["A0"])
    await furnished(shop, [till])
    await shop.worker.kill()
    shop.worker.start(switch=["answer_before_postgresql"])
    async with shop.stub() as stub:
        await till.sell(stub, till.next_sale())
    await shop.worker.kill()
    shop.worker.start()
    with pytest.raises(AssertionError, match="acknowledged, and missing"):
        (await judged(shop, [till])).check()
