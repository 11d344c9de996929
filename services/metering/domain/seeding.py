"""A shard's rows from what the book posted: where the changelog, and with it the shard, is lost.

Each account has the row that its last `usage-posted` holds, as of an offset of the shard log, and
the fact that it stood on. The header stands at the earliest of those offsets: what the log has
behind it is absorbed again, and accounts whose rows are further than it skip what they have, as
after a crash. So the same charges come out again, under the same ids, and nothing twice.

What was never posted is made of facts: accounts that were opened before the log begins and were
never charged nor credited, and house accounts, whose meters begin again at their opening register,
and have no bound until they leave.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from services.common.kernel.values import value_class
from services.metering.domain.absorb import absorb
from services.metering.domain.errors import BadRows
from services.metering.domain.messages import LogRecord, Row
from services.metering.domain.rows import (
    Fact,
    account_entity,
    account_row_key,
    fact_row,
    header_row,
    meter_entity,
)
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import account_rows, shard_of_rows

Versions = Mapping[str, Sequence[Fact]]
"""Entity → versions of its fact that the book knows."""


@value_class
class Posted:
    """What the book posted last of an account: its row as of `log_offset`, and its fact then."""

    account_key: int
    log_offset: int
    row: bytes
    fact: Fact


@value_class
class ToldFact:
    """A fact on the shard log."""

    offset: int
    entity: str
    fact: Fact


@value_class
class Seeds:
    """What the book knows of a shard.

    `facts`: of every entity that the shard is told of, accounts by key (rows.py says how entities
    are named), the newest and, where they may be needed, earlier versions. `opened_at_ms`: when
    accounts were opened that nothing was posted of, by account_key.
    """

    shard: int
    posted: Sequence[Posted]
    facts: Versions
    opened_at_ms: Mapping[int, int]


def header_offset(seeds: Seeds, log_begins: int, opened_at: Iterable[int]) -> int:
    """Return where the header stands: behind it everything is absorbed again.

    `opened_at`: offsets of the log before which accounts were opened that nothing was posted of.
    Raises BadRows where the log does not reach back to any posting.
    """
    offsets = [each.log_offset for each in seeds.posted if each.log_offset >= log_begins - 1]
    offsets += [offset - 1 for offset in opened_at]
    if not offsets:
        raise BadRows(
            f"the shard log begins at offset {log_begins}, and nothing of shard {seeds.shard} was "
            "posted since: what was charged in between is nowhere"
        )
    return min(offsets)


def seeded(
    seeds: Seeds, told: Sequence[ToldFact], header: int, now_ms: int
) -> tuple[list[Row], list[Row], Row]:
    """Return (fact rows, account rows, header row) of a shard whose header stands at an offset.

    `told`: the facts that the log has behind it, and as many before it as there are. `now_ms`: of
    the record at that offset. Raises BadRows where an account cannot be seeded.
    """
    known = known_at(seeds.facts, told, header)
    fresh = {each.account_key: each for each in seeds.posted if each.log_offset >= header}
    for key, posted in fresh.items():
        known[account_entity(key)] = posted.fact
    old = [each for each in seeds.posted if each.log_offset < header]
    state = _of_old(seeds.shard, old, known, header, now_ms)
    here = [known[entity] for entity in known if entity.partition("/")[0] in ("accounts", "meters")]
    anew = [fact for fact in here if fact["account_key"] not in fresh]
    anew = [fact for fact in anew if fact["shard"] == seeds.shard]
    _check_uncharged(anew, {each.account_key for each in old})
    for number, fact in enumerate(sorted(anew, key=_accounts_first), 1):
        subject = "meter-fact" if "meter_key" in fact else "account-fact"
        # A house may have used for years what its next reading shows: no week's load explains it.
        told_of = fact | {"max_power_w": None} if fact.get("is_house") else fact
        absorb(state, LogRecord(header + number, now_ms, subject, told_of))
    slots = np.arange(state.account_count)
    accounts, meters = state.accounts["offset"], state.meters["entered_offset"]
    np.minimum(accounts, header, out=accounts)
    np.minimum(meters, header, out=meters)
    rows = [*account_rows(state, slots)]
    rows += [Row(account_row_key(key), posted.row) for key, posted in fresh.items()]
    facts = [fact_row(entity, ((header, fact),)) for entity, fact in known.items()]
    end = header_row(header, now_ms)
    shard_of_rows(seeds.shard, [*facts, *rows, end])  # a worker must be able to stand on it
    return facts, rows, end


def known_at(facts: Versions, told: Sequence[ToldFact], header: int) -> dict[str, Fact]:
    """Return entity → the fact that stood at an offset: the last one told up to it.

    What was told long before it the log may not have any more; then it is the newest version
    before the first that was told behind it.
    """
    before: dict[str, list[Fact]] = {entity: [] for entity in facts}
    first_after: dict[str, tuple[int, int]] = {}
    for each in told:
        if each.offset <= header:
            before.setdefault(each.entity, []).append(each.fact)
        else:
            version = _version(each.fact)
            first_after[each.entity] = min(first_after.get(each.entity, version), version)
    found: dict[str, Fact] = {}
    for entity, candidates in before.items():
        end = first_after.get(entity)
        stood = [fact for fact in facts.get(entity, ()) if end is None or _version(fact) < end]
        if candidates or stood:
            found[entity] = max([*candidates, *stood], key=_version)
    return found


def _of_old(
    shard: int, old: Sequence[Posted], known: Mapping[str, Fact], header: int, now_ms: int
) -> ShardState:
    """Return a shard of the accounts whose rows the log does not reach back to."""
    shared = [
        fact_row(entity, ((header, fact),))
        for entity, fact in known.items()
        if entity.partition("/")[0] not in ("accounts", "meters")
    ]
    rows = [Row(account_row_key(each.account_key), each.row) for each in old]
    own = [fact_row(account_entity(each.account_key), ((header, each.fact),)) for each in old]
    return shard_of_rows(shard, [*shared, *own, *rows, header_row(header, now_ms)])


def _check_uncharged(facts: Iterable[Fact], posted: set[int]) -> None:
    """Raise BadRows where an account was credited, so it must have been posted, and was not."""
    for fact in facts:
        if fact.get("credited_nano") and fact["account_key"] not in posted:
            raise BadRows(
                f"account {fact['account_id']} has credit, was opened before the shard log begins, "
                "and nothing was ever posted of it: what it was charged is not known"
            )


def _accounts_first(fact: Fact) -> tuple[bool, int, int]:
    return "meter_key" in fact, fact["account_key"], fact.get("meter_key", 0)


def _version(fact: Fact) -> tuple[int, int]:
    return fact["book_epoch"], fact["revision"]


def entity_of(subject: str, fact: Fact) -> str:
    """Return what a fact is about, as rows name it."""
    match subject:
        case "account-fact":
            return account_entity(fact["account_key"])
        case "meter-fact":
            return meter_entity(fact["meter_key"])
        case "tariff-fact":
            return f"tariffs/{fact['tariff_id']}/{fact['version']}"
        case "policy-fact":
            return f"policies/{fact['policy_id']}"
        case _:
            return f"sites/{fact['site_id']}"
