"""The rows of the table, byte by byte.

Every value begins with HEAD: layout version, absorb version, a count, the offset absorbed (all
little-endian). Of two versions of one row the one with the higher offset stands.

key                          value
h                            HEAD, now_ms int64
f/<entity>                   HEAD, JSON: versions of the fact, oldest first, [[offset, fact], …];
                             entity: accounts/<account_key>, meters/<meter_key>, sites/<site_id>,
                             policies/<policy_id>, tariffs/<tariff_id>/<version>
a/<account_key, 8 bytes BE>  an ACCOUNT (which begins like HEAD); a METER for each of its meters, in
                             ascending meter_key; its ACCUMULATIONs, in ascending order of their
                             first four fields; the tail of each meter: its WINDOWs, in ascending
                             order, the HELD that it is held for, if any, and the closing that
                             waits with it, if any: the METER of the epoch before, and its HELD;
                             its HABITS and its STAND, if its policy asks; COMPONENTS, int64, if
                             one is not 0

Layout 4 had no COMPONENTS: what an account was charged until then is undivided.

Account rows hold numbers only; names stand in the fact rows. The account row alone is the truth
about which meters stand in an account.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from services.common.kernel.frames import ABSENT_REGISTER, RATES
from services.common.kernel.units import INT64_MAX, INT64_MIN
from services.common.kernel.values import value_class
from services.metering.domain.errors import BadRows
from services.metering.domain.messages import Row

LAYOUT_VERSION = 5
"""Raised when the bytes of a row change their meaning."""
FORMER_LAYOUT_VERSION = 4
"""Read too."""
ABSORB_VERSION = 7
"""Raised when the same log would give other outputs or rows."""
METERS_MAX = 256
"""Meters an account may have."""
PIPELINE_RECORDS_MAX = 1024
"""Offsets that may be absorbed beyond the header acknowledged last.

Fact rows are written before the header, so a restart may find a fact that the log has yet to bring
again. A fact row therefore keeps each version that was the newest within that many offsets.
"""

NEVER_MS = INT64_MIN
"""No such time: nothing issued, nothing published."""
NOT_DUE_MS = INT64_MAX
"""No such deadline: later than any."""
NO_POWER = INT64_MIN
"""The meter has no physical bound."""


HEADER_KEY = b"h"
FACT_PREFIX = b"f/"
ACCOUNT_PREFIX = b"a/"

_LAYOUTS = tuple(each.to_bytes(2, "little") for each in (LAYOUT_VERSION, FORMER_LAYOUT_VERSION))
_ABSORB = ABSORB_VERSION.to_bytes(2, "little")
_HEAD = struct.Struct("<HHIq")
_NOW = struct.Struct("<q")

ACCOUNT = np.dtype(
    [
        ("layout", "<u2"),
        ("absorb", "<u2"),
        ("meters", "<u4"),
        ("offset", "<i8"),
        ("key", "<i8"),
        ("level", "u1"),
        ("house", "?"),
        ("known", "?"),  # its account-fact has come
        ("closed", "?"),
        ("frozen", "?"),
        ("refusal", "u1"),  # why it was not cut, as it was told last (verdict.REFUSALS)
        ("accumulations", "<u2"),
        ("revision", "<i8"),
        ("book_epoch", "<i8"),
        ("credited_nano", "<i8"),
        ("held_nano", "<i8"),
        ("charged_nano", "<i8"),
        ("sequence", "<i8"),
        ("published_at_ms", "<i8"),
        ("due_ms", "<i8"),
        ("last_received_at_ms", "<i8"),
        ("since_ms", "<i8"),  # its account-fact came first; NEVER_MS: it has not come
        ("arrears_since_ms", "<i8"),  # a reading told that nothing is left; NEVER_MS: something is
        ("notice_at_ms", "<i8"),  # a notice of its cut went out; NEVER_MS: none stands
        ("notice_sequence", "<i8"),  # and the account's sequence then
        ("echoed", "V16"),  # UUID of the last hold echoed; zero: none yet
        ("fees_until_ms", "<i8"),  # what fees fell due until then is posted; NEVER_MS: none can be
        ("fees_due_ms", "<i8"),  # when the next fee falls due
        ("fees_sequence", "<i8"),  # of postings of fees
    ]
)
"""An account as a fixed-size record, 176 bytes."""

METER = np.dtype(
    [
        ("key", "<i8"),
        ("entered_offset", "<i8"),
        ("epoch", "<i4"),
        ("ratio", "<i4"),
        ("serial", "S20"),
        ("opened", "?"),  # it has a register
        ("hold", "u1"),  # number of what a person must resolve, in HOLDS; 0: nothing
        ("quality", "u1"),
        ("windows", "u1"),  # how many, | WITH_RATES
        ("flags", "<u4"),  # bits, in the order of FLAGS: what stands out at the meter
        ("relay_bits", "u1"),  # of the last accepted reading
        ("forced", "u1"),  # the position that a person ordered, in FORCED
        ("relay", "u1"),  # what is known of its relay: RELAY_UNKNOWN, _CLOSED, _TRIPPED
        ("tails", "u1"),  # bits: what its tail holds besides, TAIL_*
        ("register_milli", "<i8"),
        ("time_ms", "<i8"),
        ("reading_id", "V16"),
        ("sequence", "<i8"),  # of charges in this epoch; above 0: a reading was accepted
        ("energy_total_milli", "<i8"),
        ("max_power_w", "<i8"),
        ("send_before_ms", "<i8"),  # of the cut issued last; NEVER_MS: none stands
        ("since_ms", "<i8"),  # it entered the account
        ("silent_at_ms", "<i8"),  # its silence is told then; NOT_DUE_MS: it was
        ("rates_milli", "<i8", (RATES,)),  # registers of rates of the last reading; -1: absent
    ]
)
"""A meter as it stands in an account, 176 bytes."""

ACCUMULATION = np.dtype(
    [
        ("owner", "<i8"),  # 0: the account; else the meter's key
        ("period", "<i4"),
        ("version", "<i4"),
        ("rate", "<i2"),  # TOTAL: of all rates together
        ("days", "<u2"),
        ("days_of", "<u2"),
        ("spare", "V2"),
        ("base_milli", "<i8"),
        ("total_milli", "<i8"),
    ]
)
"""What a ladder adds up (rule 4), 40 bytes."""

COMPONENTS = ("surcharge", "ladder", "fees", "tax", "undivided")
"""Of what an account was charged in all, lifetime totals in nano; the rest is for its rates."""
UNDIVIDED = COMPONENTS.index("undivided")
COMPONENTS_SIZE = 8 * len(COMPONENTS)

WINDOW = struct.Struct("<4q")
"""An interval that was split by time (rule 5): from time, register, to time, register."""
WINDOW_WITH_RATES = struct.Struct(f"<{4 + 2 * RATES}q")
"""The same; then the registers of rates at its begin, and those at its end."""
WITH_RATES = 0x80
"""Beside the number of a meter's windows: they are WINDOW_WITH_RATES, all of them."""
WINDOWS_MAX = 4

HOLDS = ("", "implausible", "negative", "scale", "reset")
"""Outcomes that hold a meter until a person resolves them (rule 3), by number."""
HELD = struct.Struct("<16s3q")
"""What waits for a person: the id, register, device time and time received of a reading."""
WAITING_SIZE = METER.itemsize + HELD.size
HOURS = 24
HABITS = struct.Struct(f"<2q{HOURS}H{HOURS}B")
"""What a meter usually takes (rule 3): the mark's time and register; of each hour its level, and
how often it was told."""
STAND = struct.Struct("<2q")
"""Since when a register stands, and at what (rule 3): time, register."""
TAIL_WAITING, TAIL_HABITS, TAIL_STAND = 1, 2, 4
FLAGS = (
    *("other-serial", "absurd", "ratio-mismatch", "clock", "conflict"),
    *("stuck", "use-while-open", "rates-disagree", "reverse", "clock-drift", "silent"),
    *("unusual", "read-again", "idle"),
)
"""What stands out at a meter until a reading is accepted without it (rule 3), bit by bit;
read-again only while it is held."""
READ_AGAIN = 1 << FLAGS.index("read-again")
FORCED = ("", "off", "on")
"""Positions that a person may order, by number; 0: none, the balance decides."""
_NO_RATES = (ABSENT_REGISTER,) * (2 * RATES)
RELAY_UNKNOWN, RELAY_CLOSED, RELAY_TRIPPED = range(3)
"""What readings told of a relay since the last intent, no cut standing: closed; then open."""


Fact = dict[str, Any]
Versions = tuple[tuple[int, Fact], ...]
"""(offset absorbed, fact), oldest first."""


def words(records: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the same memory as int64, a line a record.

    numpy copies lines of words ten times as fast as structured records.
    """
    return records.view(np.int64).reshape(len(records), records.dtype.itemsize // 8)


def octets(records: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the same memory as bytes, a line a record."""
    return records.view(np.uint8).reshape(len(records), -1)


def account_row_key(account_key: int) -> bytes:
    return ACCOUNT_PREFIX + account_key.to_bytes(8, "big", signed=True)


def account_row_keys(account_keys: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return the keys of the rows of accounts as bytes, a line each."""
    prefixes = np.frombuffer(ACCOUNT_PREFIX * len(account_keys), np.uint8)
    numbers = octets(account_keys.astype(">i8"))
    return np.concatenate([prefixes.reshape(len(account_keys), -1), numbers], axis=1)


def account_entity(account_key: int) -> str:
    """Return the entity of an account's fact. By key, as everything in a row names it."""
    return f"accounts/{account_key}"


def meter_entity(meter_key: int) -> str:
    return f"meters/{meter_key}"


def header_row(offset: int, now_ms: int) -> Row:
    head = _HEAD.pack(LAYOUT_VERSION, ABSORB_VERSION, 0, offset)
    return Row(HEADER_KEY, head + _NOW.pack(now_ms))


def header_of(value: bytes) -> tuple[int, int]:
    """Return (offset, now_ms)."""
    return absorbed_offset(value), int(_NOW.unpack_from(value, _HEAD.size)[0])


def fact_row(entity: str, versions: Versions) -> Row:
    """Return the row of a fact. JSON with sorted keys, so that equal facts are equal bytes."""
    text = orjson.dumps(versions, option=orjson.OPT_SORT_KEYS)
    head = _HEAD.pack(LAYOUT_VERSION, ABSORB_VERSION, len(versions), versions[-1][0])
    return Row(FACT_PREFIX + entity.encode(), head + text)


def versions_of(value: bytes) -> Versions:
    """Return the versions that the row of a fact holds."""
    versions = orjson.loads(memoryview(value)[_HEAD.size :])
    return tuple((at, fact) for at, fact in versions)


def newest_of(value: bytes) -> Fact:
    """Return the newest of the versions that the row of a fact holds."""
    newest: Fact = orjson.loads(memoryview(value)[_HEAD.size :])[-1][1]
    return newest


def absorbed_offset(value: bytes) -> int:
    return int.from_bytes(value[8:16], "little", signed=True)


def joined(rows: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return key → the version that absorbed most; the order of `rows` is of no matter.

    Raises BadRows where a row's layout is not this one's.
    """
    newest: dict[bytes, bytes] = {}
    for key, value in rows:
        earlier = newest.get(key)
        if earlier is None or absorbed_offset(value) > absorbed_offset(earlier):
            newest[key] = value
    for key, value in newest.items():
        if not value.startswith(_LAYOUTS):
            layout = int.from_bytes(value[:2], "little")
            raise BadRows(
                f"row {key!r} has layout {layout}; this worker reads {FORMER_LAYOUT_VERSION} and "
                f"{LAYOUT_VERSION}. Start the version that wrote it, let it drain, then migrate "
                "the rows"
            )
    return newest


def check_drained(values: Iterable[bytes], header_offset: int) -> None:
    """Raise BadRows where another version of absorb stopped in the middle of its work."""
    for value in values:
        if not value.startswith(_ABSORB, 2) and absorbed_offset(value) > header_offset:
            version = int.from_bytes(value[2:4], "little")
            raise BadRows(
                f"a row ahead of the header (offset {header_offset}) was written by absorb "
                f"version {version}; this is version {ABSORB_VERSION}. Start the version that "
                "wrote it and stop it drained"
            )


def packed_windows(windows: Sequence[tuple[int, ...]]) -> tuple[int, bytes]:
    """Return (what the METER says of its windows, they themselves) of windows with rates."""
    if all(window[4:] == _NO_RATES for window in windows):
        return len(windows), b"".join(WINDOW.pack(*window[:4]) for window in windows)
    packed = b"".join(WINDOW_WITH_RATES.pack(*window) for window in windows)
    return len(windows) | WITH_RATES, packed


def windows_in(said: int, packed: bytes) -> list[tuple[int, ...]]:
    """Return windows, each with its registers of rates: -1 where absent. `said`: by the METER."""
    if said & WITH_RATES:
        return list(WINDOW_WITH_RATES.iter_unpack(packed))
    return [(*window, *_NO_RATES) for window in WINDOW.iter_unpack(packed)]


def sizes_of_tails(meters: npt.NDArray[Any], which: Any = slice(None)) -> npt.NDArray[np.int64]:
    """Return how many bytes windows, a held reading and each other tail take: (5, n)."""
    said, others = meters["windows"][which], meters["tails"][which]
    window_size = np.where(said & WITH_RATES, WINDOW_WITH_RATES.size, WINDOW.size)
    return np.stack(
        [
            window_size * (said & ~np.uint8(WITH_RATES)),
            (meters["hold"][which] != 0) * np.int64(HELD.size),
            (others & TAIL_WAITING != 0) * np.int64(WAITING_SIZE),
            (others & TAIL_HABITS != 0) * np.int64(HABITS.size),
            (others & TAIL_STAND != 0) * np.int64(STAND.size),
        ]
    )


@value_class
class ParsedAccounts:
    """Account rows as arrays: dtypes ACCOUNT, METER and ACCUMULATION, one row behind the other.

    `components`: int64, (accounts, COMPONENTS). `windows`, `held`, `waiting`, `habits`,
    `stands`: of each meter, packed.
    """

    accounts: npt.NDArray[Any]
    meters: npt.NDArray[Any]
    accumulations: npt.NDArray[Any]
    components: npt.NDArray[np.int64]
    windows: list[bytes]
    held: list[bytes]
    waiting: list[bytes]
    habits: list[bytes]
    stands: list[bytes]


def parsed_accounts(values: Sequence[bytes]) -> ParsedAccounts:
    """Return what account rows hold.

    Raises BadRows where a row's length is not what its counts say.
    """
    accounts = np.frombuffer(b"".join(value[: ACCOUNT.itemsize] for value in values), ACCOUNT)
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    ends = ACCOUNT.itemsize + accounts["meters"] * np.int64(METER.itemsize)
    torn = BadRows("an account row's length does not fit its counts: torn or foreign")
    if (sizes < ends).any():
        raise torn
    parts = zip(values, ends.tolist(), strict=True)
    meters = np.frombuffer(b"".join(value[ACCOUNT.itemsize : end] for value, end in parts), METER)
    tails = sizes_of_tails(meters).T
    accumulated = ends + accounts["accumulations"] * np.int64(ACCUMULATION.itemsize)
    of_accounts = np.zeros(len(values), np.int64)
    owners = np.repeat(np.arange(len(values)), accounts["meters"])
    np.add.at(of_accounts, owners, tails.sum(axis=1))
    tails_end = accumulated + of_accounts
    divided = sizes == tails_end + COMPONENTS_SIZE
    if not (divided | (sizes == tails_end)).all():
        raise torn
    more = np.flatnonzero(sizes > ends).tolist()
    accumulations = b"".join(values[i][ends[i] : accumulated[i]] for i in more)
    packed = b"".join(values[i][accumulated[i] : tails_end[i]] for i in more)
    stops = np.cumsum(tails).tolist()
    found = [packed[a:b] for a, b in pairwise((0, *stops))]
    counted = np.frombuffer(accumulations, ACCUMULATION)
    told = b"".join(values[i][tails_end[i] :] for i in np.flatnonzero(divided).tolist())
    components = np.zeros((len(values), len(COMPONENTS)), np.int64)
    components[divided] = np.frombuffer(told, "<i8").reshape(-1, len(COMPONENTS))
    former = accounts["layout"] == FORMER_LAYOUT_VERSION
    components[former, UNDIVIDED] = accounts["charged_nano"][former]
    packed_of = (found[part::5] for part in range(5))
    return ParsedAccounts(accounts, meters, counted, components, *packed_of)
