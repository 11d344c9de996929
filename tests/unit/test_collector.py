"""The garbage collector looks through what grew old when nobody waits, or when that never comes."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from services.common.runtime import collector

WITHIN_S = 5.0


class Node:
    """Something that a cycle goes through."""

    def __init__(self) -> None:
        self.me = self


def old_cycle() -> weakref.ref[Node]:
    """Return a cycle that nobody holds, and that the collections of what is young have passed."""
    node = Node()
    gc.collect(1)
    return weakref.ref(node)


@contextmanager
def collecting(waiting: Callable[[], int], wait_s: float) -> Iterator[None]:
    task = asyncio.create_task(
        collector.collect_at_leisure(waiting, each_s=0.01, wait_s=wait_s, look_s=0.01)
    )
    try:
        yield
    finally:
        task.cancel()


async def gone(node: weakref.ref[Node]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while node() is not None:
            await asyncio.sleep(0.01)


async def test_what_grew_old_is_looked_through_when_nobody_waits() -> None:
    calls = 1
    with collector.spared():
        node = old_cycle()
        gc.collect(1)
        with collecting(lambda: calls, wait_s=WITHIN_S):
            await asyncio.sleep(0.1)
            assert node() is not None, "somebody waits"
            calls = 0
            await gone(node)


async def test_where_somebody_always_waits_it_is_looked_through_all_the_same() -> None:
    with collector.spared():
        node = old_cycle()
        with collecting(lambda: 1, wait_s=0.05):
            await gone(node)


def test_what_is_young_is_looked_through_by_itself_and_what_is_old_is_not() -> None:
    before = gc.get_threshold()
    with collector.spared():
        old, runs = old_cycle(), gc.get_stats()[2]["collections"]
        young = weakref.ref(Node())
        kept = [[] for _ in range(2 * collector.NEW_OBJECTS)]  # type: list[list[int]]
        assert young() is None
        assert old() is not None
        assert gc.get_stats()[2]["collections"] == runs
        assert kept
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@pytest.fixture(autouse=True)
def _from_a_clean_heap() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()
