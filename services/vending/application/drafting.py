"""What a person wants of a batch becomes its draft: its targets are found, and whose they are."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.application.book import Book
from services.vending.domain import batch, batching, checks
from services.vending.domain.account import Account, account_not_found
from services.vending.domain.batch import Of, Target, Terms
from services.vending.domain.decisions import Request
from services.vending.domain.meter import Meter, meter_not_found

TARGETS_AT_A_STRETCH = 20
"""Read at once, where a store can do that; then others have their turn."""


@value_class
class Selected:
    """What a filter found: ids of meters or accounts, by what was known at `as_of_ms`."""

    ids: tuple[str, ...]
    as_of_ms: int


class Selection(Protocol):
    """Who finds the targets of a filter."""

    async def find(self, of: Of, filter_: str, at_most: int) -> Selected:
        """Return what a filter finds. Raises InvalidInput where it is none, or finds too many."""
        ...


@value_class
class Draft:
    """What a caller wants of a batch: its targets by a filter or, where that is "", by a list.

    `amount_minor`: of each target that names none.
    """

    request: Request
    terms: Terms
    filter: str
    listed: tuple[tuple[str, int | None], ...]
    amount_minor: int | None


class Drafting:
    """Chooses the targets of batches. `selection`: None where vending was told nobody who can."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.selection: Selection | None = None

    async def command(self, draft: Draft) -> batching.CreateBatch:
        """Return what drafts a batch: with its targets, and whose they are."""
        of, as_of_ms = draft.terms.rule.of, None
        if bool(draft.filter) == bool(draft.listed):
            raise checks.invalid("filter", "choose the targets by a filter, or give a list of them")
        listed = draft.listed
        if draft.filter:
            if self.selection is None:
                raise _no_selection()
            found = await self.selection.find(of, draft.filter, batch.TARGETS_MAX)
            listed, as_of_ms = tuple((id_, None) for id_ in found.ids), found.as_of_ms
            if not listed:
                raise checks.invalid("filter", f"it finds no {of}; nothing is to do")
        checks.check_between("targets", len(listed), 1, batch.TARGETS_MAX)
        targets, entities, currencies = [], set(), set()
        for (id_, amount_minor), (entity, tenancy) in zip(
            listed, await self._chosen(of, listed), strict=True
        ):
            amount = draft.amount_minor if amount_minor is None else amount_minor
            of_meter = entity.account_id if isinstance(entity, Meter) else None
            targets.append(Target(id_, entity.site_id, amount, of_meter, tenancy))
            entities.add(entity.legal_entity)
            currencies.add(entity.currency)
        if len(entities) > 1:
            raise _mixed("legal entities", entities, Reason.LEGAL_ENTITY_MISMATCH)
        if len(currencies) > 1 and draft.terms.rule.has_amounts:
            raise _mixed("currencies", currencies, Reason.CURRENCY_MISMATCH)
        return batching.CreateBatch(
            draft.request,
            draft.terms,
            entities.pop(),
            min(currencies),
            draft.filter,
            as_of_ms,
            tuple(targets),
        )

    async def _chosen(
        self, of: Of, listed: Sequence[tuple[str, int | None]]
    ) -> list[tuple[Meter | Account, int]]:
        """Return each target and its tenancy; some are read at once, where a store can do that."""

        async def one(id_: str) -> tuple[Meter | Account, int]:
            entity = await self._entity(of, id_)
            return entity, await self._tenancy(entity)

        found: list[tuple[Meter | Account, int]] = []
        for begin in range(0, len(listed), TARGETS_AT_A_STRETCH):
            stretch = listed[begin : begin + TARGETS_AT_A_STRETCH]
            found += await asyncio.gather(*(one(id_) for id_, _ in stretch))
        return found

    async def _entity(self, of: Of, id_: str) -> Meter | Account:
        found: Meter | Account | None
        if of is Of.METERS:
            found = await self._book.state_of(Meter, id_)
            missing = meter_not_found(id_)
        else:
            found = await self._book.state_of(Account, id_)
            missing = account_not_found(id_)
        if found is None:
            raise missing.as_error()
        return found

    async def _tenancy(self, of: Meter | Account) -> int:
        """Return how many tenants an account had, or that of a meter; a house has none."""
        whose: Meter | Account | None = of
        if isinstance(of, Meter):
            whose = await self._book.state_of(Account, of.account_id)
        return len(whose.tenancies) if isinstance(whose, Account) else 0


def _no_selection() -> InvalidInput:
    text = (
        "reporting resolves filters, and vending was told no address of it: set "
        "WATTVEND_VENDING_REPORTING, or give the targets as a list"
    )
    return InvalidInput(Reason.SELECTION_UNAVAILABLE, text, field="filter")


def _mixed(what: str, found: Iterable[str], reason: Reason) -> InvalidInput:
    listed = ", ".join(sorted(found))
    text = f"the targets are of several {what} ({listed}): draft a batch for each"
    return InvalidInput(reason, text, field="targets")
