"""The kernel: units, ids, routing, time, frames, envelope.

Method: laws by Hypothesis where there is one, published vectors where there are some.
"""

from datetime import datetime
from uuid import UUID

import numpy as np
import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel import frames, ids, routing, units, zones
from services.common.kernel.envelope import Envelope
from services.common.kernel.errors import InvalidInput

CNY = units.CURRENCIES["CNY"]


@given(st.binary(max_size=64))
def test_murmur2_is_kafkas(data: bytes) -> None:
    assert routing.murmur2(data) == aiokafka_murmur2(data) & 0xFFFFFFFF


@given(st.text(max_size=20), st.integers(1, 64))
def test_a_partition_exists(key: str, partitions: int) -> None:
    assert 0 <= routing.partition_of(key, partitions) < partitions


@given(st.text(min_size=1, max_size=63))
def test_a_column_key_is_a_positive_int64_and_depends_on_its_kind(name: str) -> None:
    meter, account = ids.column_key("meter", name), ids.column_key("account", name)
    assert 0 < meter <= units.INT64_MAX
    assert meter != account


def test_a_repeated_reading_has_the_same_id_and_another_register_another() -> None:
    one = ids.reading_id("202611230017", 1000, (5, -1))
    assert one == ids.reading_id("202611230017", 1000, (5, -1))
    assert one != ids.reading_id("202611230017", 1000, (6, -1))
    assert one != ids.reading_id("202611230018", 1000, (5, -1))


def test_identities_never_change() -> None:
    """Every id in every log derives from these: a change here orphans all history."""
    reading = ids.reading_id("202611230017", 1763899999500, (123450,))
    assert reading == UUID("6fadaf46-38a3-5452-9759-74f13001afa6")
    assert ids.column_key("meter", "meter-17") == 7190513538274012203
    assert ids.name_uuid("alarm", "a", 1) == UUID("a7c1cbcd-df24-5959-9c58-955c7cf19304")
    assert routing.partition_of("shop-17", 8) == 5


@given(st.integers(units.INT64_MIN, units.INT64_MAX))
def test_minor_units_become_nano_exactly_or_are_refused(amount_minor: int) -> None:
    exact = amount_minor * 10**7
    if units.fits_int64(exact):
        assert units.nano_from_minor(amount_minor, CNY) == exact
    else:
        with pytest.raises(InvalidInput, match="do not fit the ledger"):
            units.nano_from_minor(amount_minor, CNY)


@pytest.mark.parametrize("currency", units.CURRENCIES.values(), ids=lambda c: c.code)
def test_a_unit_of_energy_at_a_price_costs_what_a_sale_of_that_price_credits(
    currency: units.Currency,
) -> None:
    """Price, ledger and minor units of a currency move together."""
    minor_of_one, price_of_one = 10**currency.minor_decimals, 10**currency.price_decimals
    one_unit_milli = 1000
    assert one_unit_milli * price_of_one == units.nano_from_minor(minor_of_one, currency)


@given(st.integers(-(10**18), 10**18))
def test_an_exact_amount_reads_back_exactly(nano: int) -> None:
    text = units.format_nano(nano, CNY).removesuffix(" CNY")
    whole, _, fraction = text.lstrip("-").partition(".")
    value = int(whole) * 10**9 + int(fraction.ljust(9, "0"))
    assert (-value if text.startswith("-") else value) == nano


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (1_234_567_890, "1.23 CNY"),
        (5_000_000, "0.01 CNY"),
        (4_999_999, "0.00 CNY"),
        (-4_999_999, "0.00 CNY"),
        (-5_000_000, "-0.01 CNY"),
    ],
)
def test_amounts_are_rounded_half_away_from_zero_for_people(nano: int, text: str) -> None:
    assert units.format_nano(nano, CNY, decimals=2) == text


def test_naive_time_in_the_repeated_hour_is_the_one_nearest_to_its_arrival() -> None:
    berlin = zones.zone_named("Europe/Berlin")
    naive = datetime(2026, 10, 25, 2, 30)  # noqa: DTZ001 - a device's naive clock
    first, second = 1_792_888_200_000, 1_792_891_800_000
    assert zones.utc_ms(naive, berlin, near_ms=first + 4000) == first
    assert zones.utc_ms(naive, berlin, near_ms=second + 4000) == second


def test_an_unknown_zone_is_refused_with_an_example() -> None:
    with pytest.raises(InvalidInput, match="Asia/Shanghai"):
        zones.zone_named("Mars/Olympus")


@given(st.integers(1, 500), st.integers(0, 2**32))
def test_a_frame_survives_its_record(count: int, seed: int) -> None:
    raw = np.random.default_rng(seed).bytes(count * frames.READING.itemsize)
    rows = np.frombuffer(raw, frames.READING).copy()
    frame = frames.ReadingFrame(3, "ingest-0", "run", 7, rows)
    again = frames.ReadingFrame.from_record(frame.to_record())
    # numpy strips NULs of a string column's end; the bytes of the columns are what counts.
    assert again.to_record() == frame.to_record()


@pytest.mark.parametrize("count", [0, -1, 501])
def test_a_frame_of_an_odd_size_is_refused(count: int) -> None:
    record = frames.ReadingFrame(0, "w", "r", 0, np.zeros(1, frames.READING)).to_record()
    with pytest.raises(InvalidInput, match="entries"):
        frames.ReadingFrame.from_record({**record, "count": count})


def test_a_frame_whose_columns_differ_in_length_is_refused_by_name() -> None:
    record = frames.ReadingFrame(0, "w", "r", 0, np.zeros(2, frames.READING)).to_record()
    with pytest.raises(InvalidInput, match="registers_milli has 8 bytes"):
        frames.ReadingFrame.from_record({**record, "registers_milli": bytes(8)})


def test_an_envelope_survives_its_headers_and_a_missing_one_is_refused() -> None:
    envelope = Envelope("wake/1", UUID(int=5), 1_763_900_000_000, "shard-log/3/17", "")
    assert Envelope.from_headers(envelope.headers()) == envelope
    with pytest.raises(InvalidInput, match="envelope"):
        Envelope.from_headers(envelope.headers()[1:])


@pytest.mark.parametrize("header", ["schema", "event_id", "occurred_at", "causation_id"])
def test_a_header_that_is_null_is_refused_like_one_that_is_missing(header: str) -> None:
    headers = dict(Envelope("wake/1", UUID(int=5), 1).headers())
    headers[header] = None  # type: ignore[assignment] # Kafka knows null, its clients' types not
    with pytest.raises(InvalidInput, match="not an envelope"):
        Envelope.from_headers(headers.items())
