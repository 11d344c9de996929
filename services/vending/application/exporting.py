"""Exports of readings: what each target of such a batch comes to, and who writes it.

No command of the book: reporting writes down what was charged of a meter, once for a batch and a
meter, and the book keeps how much that is and its digest. A process that dies in between asks for
it again and is told the same.
"""

import asyncio
from typing import Protocol

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.vending.application.book import Book
from services.vending.application.process import step
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.batch import Batch, Exported, Kind, Outcome, Result, Status, Terms

AT_ONCE = 2
"""Meters of a batch that reporting writes at once: as many as it has hands for."""
PAUSES_S = (0.5, 2.0)
"""What reporting failed at is tried again after these, before that is a result for good."""
UNAVAILABLE = (
    "reporting writes exports, and vending was told no address of it: set "
    "WATTVEND_VENDING_REPORTING"
)


class Exports(Protocol):
    """Who writes what was charged of a meter."""

    async def write(
        self, export_id: str, meter_id: str, from_ms: int, to_ms: int, *, validate_only: bool
    ) -> Exported:
        """Write, once, what ends in [from, to); `validate_only`: say how many rows it would be.

        Raises InvalidInput where it cannot be, Retriable where it may be later.
        """
        ...


class Exporting:
    """The targets of exports. `exports`: None where vending was told nobody who writes them."""

    def __init__(self, book: Book, clock: Clock) -> None:
        self._book = book
        self._clock = clock
        self.exports: Exports | None = None

    def check(self, terms: Terms) -> None:
        """Raise InvalidInput(EXPORT_UNAVAILABLE) where nobody could write what a batch is for."""
        if terms.kind is Kind.EXPORT and self.exports is None:
            raise InvalidInput(Reason.EXPORT_UNAVAILABLE, UNAVAILABLE, field="kind")

    async def one(self, state: Batch, number: int) -> Result:
        """Have a target written, as the document of its legal entity allows by now.

        Of a batch that was cancelled while its round waited nothing more is: that ends at once.
        """
        if state.status is Status.CANCELLED:
            text = "the batch was cancelled before this was written"
            return Result(number, Outcome.SKIPPED, None, Reason.CANCELLED.value, text)
        authority = await self._book.state_of(Authority, state.legal_entity)
        target_id = state.targets[number].target_id
        request = step(self._clock.now_ms(), (), state.behind, "batch", state.batch_id, target_id)
        size, currency = state.targets_count, state.currency
        if problem := needs_another(authority, Action.EXPORT, size, currency, request):
            raise problem.as_error()
        for pause_s in PAUSES_S:
            try:
                return await self._written(state, number, validate_only=False)
            except InvalidInput as failed:
                if failed.reason is not Reason.INTERNAL:
                    raise
            await asyncio.sleep(pause_s)
        return await self._written(state, number, validate_only=False)

    async def tried(self, state: Batch, number: int) -> Result:
        """Return what would come of a target."""
        return await self._written(state, number, validate_only=True)

    async def _written(self, state: Batch, number: int, *, validate_only: bool) -> Result:
        terms, target_id = state.terms, state.targets[number].target_id
        assert terms.from_ms is not None, "an export is of a time"
        assert terms.to_ms is not None, "an export is of a time"
        if self.exports is None:
            raise Retriable(UNAVAILABLE)
        exported = await self.exports.write(
            state.batch_id, target_id, terms.from_ms, terms.to_ms, validate_only=validate_only
        )
        return Result(number, Outcome.DONE, export=exported)
