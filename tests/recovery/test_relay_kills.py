"""Goal: what the book has is told on every topic, whole and in order, however the relay was killed.

Method: a till sells while the real vending is killed at each boundary of its relay, between and
within topics, and around its checkpoint. At each death what stands in the topics is held against
the rules that hold at any moment; at the end everything is held against what a relay that nothing
disturbs would have told of the same SQLite file. Each rule is then switched off, and the same
judge must find what is forgotten.
"""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from services.vending.adapters import stores
from services.vending.adapters.keys import PublicKeys
from services.vending.adapters.scratch import ScratchLasts
from services.vending.application.stored import event_of
from services.vending.application.verifying import verify
from services.vending.domain.events.sales import CreditSold
from tests.recovery import bus
from tests.recovery.faults import Fault, rounds
from tests.recovery.vending_judge import (
    TOPICS,
    book,
    heard,
    judge_now,
    judge_topics,
    must_be_told,
)
from tests.recovery.vending_shop import Shop, Till, until_sold
from tests.recovery.verdict import Verdict
from tests.recovery.workers import until_async
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

SEED = 20262
BOUNDARIES = (
    "numbered",
    "linked",
    "record-acknowledged",
    "ledger-published",
    "shards-published",
    "registry-published",
    "root-kept",
    "checkpointed",
)
HIT_MAX = 5
ACCOUNTS = [f"A{number}" for number in range(8)]
BETWEEN_SALES_S = 0.02
"""So that the book is small: it is judged at each death."""


@pytest.fixture
async def shop(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[Shop]:
    await bus.fresh(stack.kafka_bootstrap, TOPICS)
    shop = Shop(stack.kafka_bootstrap, tmp_path)
    yield shop
    shop.worker.end()


@asynccontextmanager
async def selling(shop: Shop, till: Till) -> AsyncIterator[None]:
    """Let a till sell at leisure, through kills."""
    closes = asyncio.Event()

    async def sell(stub: Any) -> None:
        while not closes.is_set():
            await till.sell(stub, till.next_sale())
            await asyncio.sleep(BETWEEN_SALES_S)

    async with shop.stub() as stub, asyncio.TaskGroup() as group:
        group.create_task(sell(stub))
        yield
        closes.set()


async def everything_is_told(shop: Shop) -> bool:
    """Whether every record that the book must tell is there, and a checkpoint says so."""
    events = book(shop.path)
    found = await heard(shop.bootstrap)
    newest = max((checkpoint["position"] for checkpoint in found.checkpoints), default=0)
    return not must_be_told(events).records.keys() - found.records.keys() and newest == len(events)


async def judged_now(shop: Shop) -> Verdict:
    return judge_now(must_be_told(book(shop.path)), await heard(shop.bootstrap))


@pytest.mark.fault("relay-killed-at-each-boundary")
async def test_the_relay_killed_at_each_boundary_tells_everything_in_order(
    shop: Shop, fault: Fault
) -> None:
    chance = random.Random(SEED)
    till = Till("till", ACCOUNTS)
    shop.worker.start()
    await shop.furnish(ACCOUNTS)
    await shop.worker.kill()
    verdict = Verdict()
    async with selling(shop, till):
        for _ in rounds(1):
            for boundary in BOUNDARIES:
                hit = chance.randint(1, HIT_MAX)
                shop.worker.start(boundary, hit=hit, switch=["record_by_record"])
                await shop.worker.wait_ended()
                fault.tried += 1
                verdict += await judged_now(shop)
        shop.worker.start()
        await until_sold([till], more=1)
    await until_async(lambda: everything_is_told(shop), "the relay has told everything")
    found = await heard(shop.bootstrap)
    verdict += judge_topics(must_be_told(book(shop.path)), found)
    fault.judged += verdict.judged
    fault.lost += len(verdict.wrong)
    assert not verdict.wrong, verdict.wrong[:5]
    assert found.repeats > 0, "no kill made anything be told twice"
    await judge_links(shop)
    judge_numbers(shop)


def judge_numbers(shop: Shop) -> None:
    """Count the receipts of the book anew: each has its number, in the order of the store."""
    events = map(event_of, book(shop.path))
    receipts = [event.receipt_id for event in events if isinstance(event, CreditSold)]
    with closing(sqlite3.connect(f"file:{shop.path}?mode=ro", uri=True)) as file:
        rows = file.execute("SELECT receipt_id, number FROM document ORDER BY position").fetchall()
    assert rows == [(receipt, number) for number, receipt in enumerate(receipts, 1)]
    assert rows


async def judge_links(shop: Shop) -> None:
    """Hold every event that was told against its link."""
    async with stores.reading(f"sqlite:{shop.path}", "test") as stored:
        with ScratchLasts() as lasts:
            keys = PublicKeys([])
            verdict = await verify(stored.store, stored.tables, lasts, keys, lambda *_: None)
    assert verdict.fault is None
    assert verdict.linked == verdict.root.count > 0


@pytest.mark.parametrize(
    ("rule", "boundary", "finding"),
    [
        ("checkpoint_before_publishing", "ledger-published", "is missing below the checkpoint"),
        ("routes_before_facts", "routes-published", "was a route before it was a fact"),
    ],
)
async def test_without_the_rule_the_judge_finds_what_the_relay_forgets(
    shop: Shop, rule: str, boundary: str, finding: str
) -> None:
    """A checkpoint comes after what it speaks for; a route comes after its fact."""
    shop.worker.start(boundary, hit=2, switch=[rule])
    furnishing = asyncio.create_task(shop.furnish(["A0"]))
    await shop.worker.wait_ended()
    verdict = await judged_now(shop)
    shop.worker.start()
    await furnishing
    assert any(finding in wrong for wrong in verdict.wrong), verdict.wrong
