"""Rule 4's ladders, one line at a time: accumulations as they would be.

Exact integers without end, nothing changed until the result stands. What a frame's columns can be
asked at once is asked in `lines`; here is what cannot: a new month, a new version, a late reading.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from services.common.kernel.frames import BASIS_CLOSED, NO_RATE
from services.common.kernel.values import value_class
from services.common.tariffs.calendar import days_left
from services.common.tariffs.pricing import TOTAL, Rise, climbed
from services.metering.domain.tariffs import Tariffs, Version

Key = tuple[int, int, int, int]
"""(owner: 0 the account, else a meter's key; period; version; rate or TOTAL)."""


@dataclass(slots=True)
class Accumulation:
    """Energy of one owner in one period under one version; see rule 4."""

    base_milli: int
    total_milli: int
    days: int
    days_of: int

    def added(self, rises: tuple[Rise, ...], energy_milli: int, base_milli: int) -> tuple[int, int]:
        """Return what the ladder and its tax come to, more than before, and count the energy."""
        before = self._steps(rises)
        self.total_milli += energy_milli
        self.base_milli += base_milli
        after = self._steps(rises)
        return after[0] - before[0], after[1] - before[1]

    @property
    def share(self) -> tuple[int, int, int]:
        """What a line tells of it beside its total."""
        return self.base_milli, self.days, self.days_of

    def _steps(self, rises: tuple[Rise, ...]) -> tuple[int, int]:
        """Return (L, its tax) of what `total` adds to `base`."""
        after_milli = self.base_milli + self.total_milli
        return climbed(rises, (self.days, self.days_of), self.base_milli, after_milli)


@value_class
class Part:
    """Energy of an interval under one version (its row in the table of terms)."""

    row: int
    rate: int
    period: int
    energy_milli: int


@value_class
class PricedLine:
    """A line as rule 4 tells it: the columns of dtype LINE but for the charge."""

    version: int
    rate: int
    basis: int
    period: int
    energy_milli: int
    total_milli: int
    rate_nano: int
    surcharge_nano: int
    ladder_nano: int
    tax_nano: int
    base_milli: int
    days: int
    days_of: int

    @property
    def figures(self) -> tuple[int, ...]:
        """What is behind the period, in its order; all of it must fit int64."""
        amounts = (self.rate_nano, self.surcharge_nano, self.ladder_nano, self.tax_nano)
        share = (self.base_milli, self.days, self.days_of)
        return (self.energy_milli, self.total_milli, *amounts, *share)

    @property
    def amount_nano(self) -> int:
        """All of it."""
        return self.rate_nano + self.surcharge_nano + self.ladder_nano + self.tax_nano


class Ladder:
    """An account's accumulations under its tariff (a slot of `tariffs`).

    `heads`: keys of the newest ones of what was used here.
    """

    def __init__(
        self, tariffs: Tariffs, tariff: int, accumulations: dict[Key, Accumulation]
    ) -> None:
        self._tariffs = tariffs
        self._tariff = tariff
        self._accumulations = accumulations
        self.heads: set[Key] = set()

    def __len__(self) -> int:
        return len(self._accumulations)

    def sorted(self) -> list[tuple[Key, Accumulation]]:
        """Return all of them in ascending order of their keys."""
        return sorted(self._accumulations.items())

    def leave(self, owner: int) -> bool:
        """Let what a meter accumulated go; say whether there was any."""
        return self._drop({key for key in self._accumulations if key[0] == owner})

    def price(
        self, part: Part, basis: int, meter_key: int, since_ms: tuple[int, int]
    ) -> Iterator[PricedLine]:
        """Yield the line of a part and those that follow.

        `since_ms`: of the account, and of the meter.
        """
        number = int(self._tariffs.table["version"][part.row])
        version = self._tariffs.version(self._tariff, number)
        terms, energy_milli = version.terms, part.energy_milli
        period, total_milli, ladder_nano, ladder_tax_nano = part.period, 0, 0, 0
        share = (0, 0, 0)
        rate = TOTAL if TOTAL in terms.ladders else part.rate
        rises = terms.ladders.get(rate)
        key: Key | None = None
        if rises is not None:
            owner = meter_key if terms.by_meter else 0
            newest = max((k[1] for k in self._accumulations if k[0] == owner), default=period)
            if period < newest - 1:
                period, basis = newest - 1, basis | BASIS_CLOSED
            key = (owner, period, number, rate)
            accumulation = self._at(key, version, since_ms[terms.by_meter])
            ladder_nano, ladder_tax_nano = accumulation.added(rises, energy_milli, 0)
            total_milli = accumulation.base_milli + accumulation.total_milli
            share = accumulation.share
        yield PricedLine(
            number,
            part.rate,
            basis,
            period,
            energy_milli,
            total_milli,
            energy_milli * terms.rate_micro[part.rate],
            energy_milli * terms.surcharge_micro,
            ladder_nano,
            energy_milli * terms.tax_micro[part.rate] + ladder_tax_nano,
            *share,
        )
        if key is not None:
            yield from self._raised(key, basis, energy_milli)

    def _raised(self, key: Key, basis: int, energy_milli: int) -> Iterator[PricedLine]:
        """Raise the bases of what lies above an accumulation; yield the lines that follow."""
        owner, period, number, rate = key
        higher = sorted(
            (other, each)
            for other, each in self._accumulations.items()
            if (other[0], other[1], other[3]) == (owner, period, rate) and other[2] > number
        )
        for other, each in higher:
            terms = self._tariffs.version(self._tariff, other[2]).terms
            ladder_nano, tax_nano = each.added(terms.ladders.get(rate, ()), 0, energy_milli)
            if ladder_nano or tax_nano:
                total_milli = each.base_milli + each.total_milli
                amounts = (0, total_milli, 0, 0, ladder_nano, tax_nano)
                yield PricedLine(other[2], NO_RATE, basis, period, *amounts, *each.share)

    def _at(self, key: Key, version: Version, since_ms: int) -> Accumulation:
        owner, period, number, rate = key
        siblings = [k for k in self._accumulations if k[0] == owner and k[3] == rate]
        found = self._accumulations.get(key)
        if found is None:
            base_milli = sum(
                self._accumulations[k].total_milli
                for k in siblings
                if k[1] == period and k[2] < number
            )
            days = days_left(version.plan, period, since_ms)
            found = self._accumulations[key] = Accumulation(base_milli, 0, *days)
            self._drop({k for k in self._accumulations if k[0] == owner and k[1] < period - 1})
            siblings.append(key)
        self.heads -= {head for head in self.heads if head[0] == owner}
        self.heads.add(max(k for k in siblings if k in self._accumulations))
        return found

    def _drop(self, keys: set[Key]) -> bool:
        for key in keys:
            del self._accumulations[key]
        self.heads -= keys
        return bool(keys)
