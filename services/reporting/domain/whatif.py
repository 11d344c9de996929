"""What a draft of a tariff would have charged for what was recorded. It has no effect on anything.

A charge of a period is a function of its totals (services/metering/README.md, rule 4), so an
account's energy is added up by rate and by ladder's period, before and within the time that is
asked for, and priced once at the end. An interval belongs to the time in which it ends; a late
reading refines the interval that it lies in, and its correction belongs there too. Fees are a
function of time.
"""

from calendar import monthrange
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import orjson

from services.common.kernel.frames import ABSENT_REGISTER, RATES
from services.common.kernel.values import value_class
from services.common.kernel.zones import zone_named
from services.common.tariffs.calendar import (
    begin_ms,
    days_left,
    local_date,
    period_days,
    period_of,
)
from services.common.tariffs.plan import Plan
from services.common.tariffs.pricing import TOTAL, climbed, terms_of
from services.common.tariffs.shape import End, Timeline
from services.reporting.domain.projections import FEE, RESPLIT

_NO_RATES = (ABSENT_REGISTER,) * RATES
ACCOUNT = (0, 0)
"""The owner of a ladder of the account; of a meter's: (meter_key, the epoch in which it came)."""
NANO_PER_MICRO = 1000
WITHIN = 1
"""The part of a cut draft's timeline that lies in its time: behind one of its two ends."""

Owner = tuple[int, int]
Step = tuple[Owner, int, int]
"""(owner, period, rate or TOTAL): whose energy climbs which ladder."""


class Recorded(NamedTuple):
    """What the preview reads of a charge."""

    meter_key: int
    epoch: int
    kind: str
    from_time_ms: int
    from_register_milli: int
    to_time_ms: int
    to_register_milli: int
    ratio: int
    energy_milli: int
    amount_nano: int
    from_rates_milli: str | None
    to_rates_milli: str | None

    @property
    def begin(self) -> End:
        """Where it begins."""
        return End(self.from_time_ms, self.from_register_milli, _registers(self.from_rates_milli))

    @property
    def end(self) -> End:
        """Where it ends."""
        return End(self.to_time_ms, self.to_register_milli, _registers(self.to_rates_milli))


def _registers(text: str | None) -> tuple[int, ...]:
    return _NO_RATES if text is None else tuple(orjson.loads(text))


@value_class
class InForce:
    """What charged the time of a draft: a version's plan, and when versions began.

    `begins_ms`: ascending, up to one at the end of that time or behind it.
    """

    plan: Plan
    begins_ms: tuple[int, ...]


class Timelines(NamedTuple):
    """What splits intervals under a draft; `charged`: what did, where the draft cuts them."""

    tried: Timeline
    charged: Timeline | None = None


@value_class
class Draft:
    """A plan, and the time [from_ms, to_ms) for which it is tried.

    `cut_as`: an interval over an end of it is split there, as it was charged, and what of it lies
    within counts: each register of rates by the time of its rate where they told it, else all by
    time, as where a version begins. None: it belongs to the time in which it ends.
    """

    plan: Plan
    from_ms: int
    to_ms: int
    cut_as: InForce | None = None

    @property
    def cuts(self) -> bool:
        """Whether intervals over an end count in part."""
        return self.cut_as is not None

    def timelines(self, from_ms: int) -> Timelines:
        """Return what splits intervals that begin at `from_ms` or later."""
        if self.cut_as is None:
            return Timelines(Timeline(self.plan, from_ms, self.to_ms))
        return Timelines(
            Timeline(self.plan, from_ms, self.to_ms, (self.from_ms, self.to_ms)),
            Timeline(self.cut_as.plan, from_ms, self.cut_as.begins_ms[-1], self.cut_as.begins_ms),
        )

    def reads_from_ms(self, begins_ms: int) -> int:
        """Return from where on charges must be read, where intervals begin at `begins_ms`.

        A ladder climbs from the beginning of its period: the day before it is early enough.
        """
        if self.plan.ladder is None:
            return self.from_ms
        zone = zone_named(self.plan.zone)
        first = min(begins_ms, self.from_ms)
        begins, _ = period_days(self.plan, period_of(self.plan, local_date(zone, first)))
        day_before = datetime(begins.year, begins.month, begins.day, tzinfo=UTC) - timedelta(days=2)
        return min(self.from_ms, int(day_before.timestamp()) * 1000)


def fees_owed(draft: Draft, since_ms: int, until_ms: int) -> tuple[int, int]:
    """Return (fees, the taxes on them) of an account, whatever it used; nano.

    Of its begin at `since_ms`, and of the local days and months that begin after it, in the
    draft's time and before `until_ms`.
    """
    plan, fees = draft.plan, terms_of(draft.plan).fees
    zone, ends_ms = zone_named(plan.zone), min(draft.to_ms, until_ms)
    begun = list(_days_begun(zone, max(draft.from_ms, since_ms + 1), ends_ms))
    counts = {False: len(begun), True: sum(day.day == 1 for day in begun)}
    shares = dict.fromkeys(counts, (0, 1))
    if draft.from_ms <= since_ms < ends_ms:
        begins = local_date(zone, since_ms)
        of_month = monthrange(begins.year, begins.month)[1]
        shares = {False: (1, 1), True: (of_month - begins.day + 1, of_month)}

    def owed_nano(micro: int, *, monthly: bool) -> int:
        nano, (days, days_of) = micro * NANO_PER_MICRO, shares[monthly]
        return nano * counts[monthly] + nano * days // days_of

    return (
        sum(owed_nano(fee.amount_micro, monthly=fee.monthly) for fee in fees),
        sum(owed_nano(fee.tax_micro, monthly=fee.monthly) for fee in fees),
    )


def _days_begun(zone: ZoneInfo, from_ms: int, to_ms: int) -> Iterator[date]:
    """Yield the local days that begin in [from, to); not a date that the zone left out."""
    if from_ms < to_ms:
        first, last = (local_date(zone, at_ms) for at_ms in (from_ms, to_ms - 1))
        for number in range((last - first).days + 1):
            day = first + timedelta(days=number)
            at_ms = begin_ms(zone, day)
            if from_ms <= at_ms < to_ms and local_date(zone, at_ms) == day:
                yield day


@dataclass(slots=True)
class Sums:
    """What accounts used and paid, and would have paid. Integers without end."""

    energy_milli: int = 0
    charged_nano: int = 0
    rate_nano: int = 0
    surcharge_nano: int = 0
    ladder_nano: int = 0
    fee_nano: int = 0
    tax_nano: int = 0

    @property
    def draft_nano(self) -> int:
        """All that the draft would have charged."""
        energy_nano = self.rate_nano + self.surcharge_nano + self.ladder_nano
        return energy_nano + self.fee_nano + self.tax_nano

    def add(self, other: "Sums") -> None:
        """Add another account's."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Preview:
    """One account under a draft. `since_ms`: when each owner of a ladder began; else long ago.

    `came`: of (meter_key, epoch) the epoch in which the meter came to the account; else that one.
    Charges are added in ascending order of (meter_key, epoch, to_time_ms, sequence).
    """

    draft: Draft
    timelines: Timelines
    since_ms: Mapping[Owner, int]
    came: Mapping[tuple[int, int], int]
    _sums: Sums = field(default_factory=Sums)
    _rates: Counter[int] = field(default_factory=Counter)
    _before: Counter[Step] = field(default_factory=Counter)
    _within: Counter[Step] = field(default_factory=Counter)
    _late: list[Recorded] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Work out what every interval is asked."""
        self._terms = terms_of(self.draft.plan)

    def add(self, charge: Recorded) -> None:
        """Count a charge. Fees are no intervals: what was charged of them counts as it was."""
        if charge.kind == FEE:
            if charge.to_time_ms >= self.draft.from_ms:
                self._sums.charged_nano += charge.amount_nano
            return
        if charge.kind == RESPLIT:
            self._late.append(charge)
            return
        late = [each for each in self._late if _lies_in(each, charge)]
        self._late.clear()
        within = charge.to_time_ms >= self.draft.from_ms
        if within and not self.draft.cuts:
            self._sums.energy_milli += charge.energy_milli
            self._sums.charged_nano += charge.amount_nano + sum(each.amount_nano for each in late)
        begin, left_milli = charge.begin, charge.energy_milli
        for each in late:
            energy_milli = (each.to_register_milli - begin.register_milli) * charge.ratio
            self._split(charge, begin, each.end, energy_milli, within=within)
            begin = each.end
            left_milli -= energy_milli
        self._split(charge, begin, charge.end, left_milli, within=within)

    def _split(
        self, charge: Recorded, begin: End, end: End, energy_milli: int, *, within: bool
    ) -> None:
        for middle in self._middles(begin, end, charge.ratio):
            until_milli = (middle.register_milli - begin.register_milli) * charge.ratio
            self._count(charge, begin, middle, until_milli, within=within)
            begin, energy_milli = middle, energy_milli - until_milli
        self._count(charge, begin, end, energy_milli, within=within)

    def _middles(self, begin: End, end: End, ratio: int) -> list[End]:
        """Return where an interval's registers stood at the draft's ends, where they told it."""
        if (charged := self.timelines.charged) is None:
            return []
        ends_ms = (self.draft.from_ms, self.draft.to_ms)
        middles = (charged.told_at(begin, end, ratio, at_ms) for at_ms in ends_ms)
        return [middle for middle in middles if middle is not None]

    def _count(
        self, charge: Recorded, begin: End, end: End, energy_milli: int, *, within: bool
    ) -> None:
        ladders = self._terms.ladders
        owner = self._owner(charge)
        for share in self.timelines.tried.shares(begin, end, energy_milli, charge.ratio):
            if self.draft.cuts:
                if share.part > WITHIN:
                    continue
                within = share.part == WITHIN
                self._sums.energy_milli += share.energy_milli if within else 0
            if within:
                self._rates[share.rate] += share.energy_milli
            rate = TOTAL if TOTAL in ladders else share.rate
            if rate in ladders:
                steps = self._within if within else self._before
                steps[owner, share.period, rate] += share.energy_milli

    def _owner(self, charge: Recorded) -> Owner:
        if not self._terms.by_meter:
            return ACCOUNT
        meter_epoch = (charge.meter_key, charge.epoch)
        return charge.meter_key, self.came.get(meter_epoch, charge.epoch)

    def sums(self, fees: tuple[int, int] = (0, 0)) -> Sums:
        """Return what it comes to, once all is added. `fees`: owed under the draft, and taxes."""
        terms, sums = self._terms, replace(self._sums)
        sums.fee_nano += fees[0]
        sums.tax_nano += fees[1]
        for rate, energy_milli in self._rates.items():
            sums.rate_nano += energy_milli * terms.rate_micro[rate]
            sums.surcharge_nano += energy_milli * terms.surcharge_micro
            sums.tax_nano += energy_milli * terms.tax_micro[rate]
        for step, energy_milli in self._within.items():
            owner, period, rate = step
            share = days_left(self.draft.plan, period, self.since_ms.get(owner, 0))
            before_milli = self._before[step]
            after_milli = before_milli + energy_milli
            ladder_nano, tax_nano = climbed(terms.ladders[rate], share, before_milli, after_milli)
            sums.ladder_nano += ladder_nano
            sums.tax_nano += tax_nano
        return sums


def _lies_in(late: Recorded, charge: Recorded) -> bool:
    place = (charge.meter_key, charge.epoch) == (late.meter_key, late.epoch)
    return place and charge.from_time_ms < late.to_time_ms < charge.to_time_ms
