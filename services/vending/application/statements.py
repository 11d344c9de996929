"""Once a day metering is asked what each account was charged; the echoes are posted.

A round begins at one instant of each day and goes through all accounts at a bounded pace. What was
asked, and not yet answered, stands in the tables: no account has two asks waiting, and a restart
goes on where the round was. Nobody else is kept waiting: while metering is away only so many asks
wait, and the round stands still.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import structlog

from services.common.kernel.clock import Clock
from services.common.kernel.errors import Retriable
from services.common.kernel.ids import column_key, house_account_id, name_uuid
from services.common.kernel.routing import partition_of
from services.common.kernel.values import value_class
from services.common.runtime import points
from services.common.runtime.kafka import Outgoing
from services.vending.application.office import Office
from services.vending.application.relay import Publisher, Relay
from services.vending.domain.account import Status
from services.vending.domain.event_store import EventStore
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.tables import Ask, Tables
from services.vending.domain.usage import PostUsage
from services.vending.metrics import Metrics

STEP_S = 1.0
MINUTE_MS = 60_000
DAY_MS = 86_400_000
LOST_AFTER_MS = 7 * DAY_MS
"""An ask that nobody answered for so long is asked again: its record, or its echo, is lost."""
WAITING_MAX = 10_000
"""Asks that may wait for metering at once."""
HOUSE = house_account_id("")
"""How the ids of house accounts begin: what they use costs nothing."""
PAGE_ACCOUNTS = 500
PAGES_PER_STEP_MAX = 20
"""How much of the accounts a step looks through: where most need not be asked."""


@value_class
class Pace:
    """`begins_minute`: of the day (UTC) at which a round begins; at most so many asks a second."""

    begins_minute: int
    asks_per_s: int

    def round_ms(self, now_ms: int) -> int:
        """Return when the round began that is under way."""
        begins_ms = self.begins_minute * MINUTE_MS
        return (now_ms - begins_ms) // DAY_MS * DAY_MS + begins_ms


class Statements:
    """Asks metering, and posts what it answers."""

    def __init__(
        self,
        office: Office,
        store: EventStore,
        tables: Tables,
        publisher: Publisher,
        relay: Relay,
        *,
        clock: Clock,
        metrics: Metrics,
        pace: Pace,
    ) -> None:
        """`relay`: an account is asked about when metering knows of it."""
        self._office = office
        self._store = store
        self._tables = tables
        self._publisher = publisher
        self._relay = relay
        self._clock = clock
        self._pace = pace
        self._posted = metrics.usage_statements.labels
        self._waiting = metrics.usage_asks_waiting.set
        self._asking = asyncio.Lock()
        self._after: Ask | None = None
        """The last account that was looked at; None: all were, or none yet."""
        self._is_new = True
        self._began_ms = self._done_ms = -DAY_MS
        """The round in which the way through all accounts began; and the last that is through."""

    async def run(self, log: structlog.stdlib.BoundLogger) -> None:
        """Ask, until cancelled. What fails is tried again with the next step."""
        while True:
            try:
                await self.step()
            except Retriable as failed:
                log.warning("metering is asked later", why=str(failed))
            await asyncio.sleep(STEP_S)

    async def step(self) -> int:
        """Ask about the next accounts of the round; return how many."""
        now_ms = self._clock.now_ms()
        waiting = await self._tables.asks_waiting(now_ms - LOST_AFTER_MS)
        self._waiting(waiting)
        round_ms = self._pace.round_ms(now_ms)
        most = min(self._pace.asks_per_s, WAITING_MAX - waiting)
        if self._done_ms == round_ms or most <= 0:
            return 0
        if self._after is None:
            self._began_ms = round_ms
        if self._is_new:
            self._after = await self._reached(round_ms, now_ms)
            self._is_new = False
        due, after = await self._next(round_ms, now_ms, most)
        if due:
            await self._ask([_asked(ask, now_ms) for ask in due])
        self._after = after
        if after is None:
            self._done_ms = self._began_ms
        return len(due)

    async def _reached(self, round_ms: int, now_ms: int) -> Ask | None:
        """Return the last account that the round had asked about before a restart, if it had.

        It goes through the accounts in their order. Where it began in this round, all of the first
        page were looked at in it, and the newest ask is how far it was.
        """
        first = await self._tables.asks(None, PAGE_ACCOUNTS)
        if any(_is_due(ask, round_ms, now_ms) for ask in first):
            return None
        if not any(ask.asked_at_ms >= round_ms for ask in first):
            return None
        ids = await self._tables.asked_last(round_ms)
        asked = [Ask(account_id, column_key("account", account_id)) for account_id in ids]
        return max(asked, key=lambda ask: str(ask.account_key), default=None)

    async def _next(self, round_ms: int, now_ms: int, most: int) -> tuple[list[Ask], Ask | None]:
        """Return at most so many accounts to ask about, and the last looked at; None: the end."""
        due: list[Ask] = []
        after = self._after
        for _ in range(PAGES_PER_STEP_MAX):
            page = await self._tables.asks(after, PAGE_ACCOUNTS)
            due += [ask for ask in page if _is_due(ask, round_ms, now_ms)]
            if len(due) >= most:
                return due[:most], due[most - 1]
            if len(page) < PAGE_ACCOUNTS:
                return due, None
            after = page[-1]
            await asyncio.sleep(0)  # sales are answered on this loop too
        return due, after

    async def _ask(self, asks: Sequence[Ask]) -> None:
        await self._relay.reached(await self._store.head())
        # An answer may come before it is known here what was asked: it waits for that.
        async with self._asking:
            await self._publisher.publish([self._record(ask) for ask in asks])
            points.point("usage-asked")
            await self._tables.keep_asks(asks)

    def _record(self, ask: Ask) -> Outgoing:
        assert ask.waits_for is not None, "an ask has an id"
        record = {
            "ask_id": ask.waits_for,
            "account_id": ask.account_id,
            "account_key": ask.account_key,
            "asked_at_ms": ask.asked_at_ms,
        }
        return Outgoing(
            "shard-log",
            "usage-ask",
            record,
            key=ask.account_id,
            event_id=UUID(ask.waits_for),
            occurred_at_ms=ask.asked_at_ms,
            partition=partition_of(ask.account_id, self._office.terms.shards),
        )

    async def answered(self, ask_id: str, told: PostUsage) -> None:
        """Post what metering answered to an ask, where it is news."""
        outcome = await self._office.post_usage(told)
        used = outcome.state.used if outcome.state else None
        if isinstance(outcome.event, UsagePosted):
            self._posted("posted").inc()
        else:
            is_known = used is not None and used.account_sequence == told.account_sequence
            self._posted("unchanged" if is_known else "behind").inc()
        is_last = outcome.state is not None and outcome.state.status is Status.CLOSED
        async with self._asking:
            await self._tables.keep_answer(told.account_id, ask_id, is_last=is_last)


def _asked(ask: Ask, at_ms: int) -> Ask:
    ask_id = str(name_uuid("usage-ask", ask.account_id, at_ms))
    return Ask(ask.account_id, ask.account_key, at_ms, ask_id)


def _is_due(ask: Ask, round_ms: int, now_ms: int) -> bool:
    """Say whether a round, which began at `round_ms`, has still to ask about an account."""
    if ask.account_id.startswith(HOUSE) or ask.is_last or ask.asked_at_ms >= round_ms:
        return False
    return ask.waits_for is None or ask.asked_at_ms < now_ms - LOST_AFTER_MS
