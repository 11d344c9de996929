"""Commands for a person at the book: they read it beside the running service, or mend it without.

Each prints its answer to stdout and how far it is to stderr, and returns an exit code.
"""

# ruff: noqa: T201 - what they print is the answer to a person

import argparse
import asyncio
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.progress import Progress

from services.common.kernel.errors import WattvendError
from services.common.runtime import service
from services.common.runtime.topics import catalogue
from services.vending import audit
from services.vending.adapters import bus, stores
from services.vending.adapters.keys import PublicKeys, SigningKey, public_keys_in
from services.vending.adapters.ledger import ledger_above
from services.vending.adapters.scratch import ScratchLasts
from services.vending.adapters.table_copy import copy_tables, differing_table
from services.vending.application import copying, importing, seeding, verifying
from services.vending.application.balances import Until, balanced, tables_of
from services.vending.application.verifying import Fault, Verdict
from services.vending.config import VendingSettings
from services.vending.domain.event_store import FROM_START

RUN = "run"
FAULT_FOUND = 1
"""The exit code where the book is not what was told, or does not balance."""


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for; without a command that is to run the service."""
    parser = argparse.ArgumentParser(
        prog="python -m services.vending",
        description="The book of record: runs it, or answers and mends what a person asks for. "
        "All settings are environment variables.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser(RUN, help="run the service; so does no command")
    verifies = commands.add_parser(
        "verify",
        help="follow the whole book and name the first event that is not what was told "
        f"(exit code {FAULT_FOUND}); vending may run meanwhile",
    )
    verifies.add_argument(
        "--ledger", action="store_true", help="compare every event with the topic ledger too"
    )
    audit.add_to(commands)
    commands.add_parser(
        "import-ledger",
        help="bring back into a restored store what it lacks of ledger; stop vending first",
    )
    commands.add_parser(
        "raise-book-epoch",
        help="this store, restored or new, is the truth from now on; stop vending first",
    )
    copy = commands.add_parser(
        "copy-book",
        help="copy the book to another store and prove both equal; stop vending first",
    )
    copy.add_argument(
        "--to",
        required=True,
        metavar="STORE",
        help="sqlite:PATH, postgresql://... (a password may come from PGPASSWORD) or kurrentdb://...",
    )
    copy.add_argument(
        "--ahead",
        action="store_true",
        help="copy what there is while vending runs; the last run, without this, is then short",
    )
    seeds = commands.add_parser(
        "seeds",
        help="write what a shard of metering can be seeded from, where its rows are lost; vending "
        "may run meanwhile",
    )
    seeds.add_argument("--shard", type=int, required=True)
    seeds.add_argument("--to", type=Path, required=True, metavar="FILE")
    balance = commands.add_parser(
        "trial-balance",
        help="add up what was posted, at any past position; vending may run meanwhile",
    )
    balance.add_argument("--position", type=int, help="up to this event of the store")
    balance.add_argument("--at", type=_instant_ms, help="what was decided until then")
    balance.add_argument("--legal-entity", help="the books of this one alone")
    parser.set_defaults(command=RUN)
    return parser.parse_args(arguments)


def carried_out(chosen: argparse.Namespace, settings: VendingSettings) -> int:
    """Do what was asked for; return the exit code."""
    work: Coroutine[Any, Any, int]
    match chosen.command:
        case "verify":
            work = verify(settings, with_ledger=chosen.ledger)
        case "audit":
            work = audit.audit(settings, chosen)
        case "import-ledger":
            work = import_ledger(settings)
        case "copy-book":
            work = copy_book(settings, chosen.to, is_ahead=chosen.ahead)
        case "seeds":
            work = seeds(settings, chosen.shard, chosen.to)
        case "trial-balance":
            work = trial_balance(chosen, settings)
        case _:
            work = raise_book_epoch(settings)
    try:
        return asyncio.run(work)
    except (OSError, WattvendError, KafkaError) as failed:
        print(f"vending: {failed}", file=sys.stderr)
        return service.EXIT_FAILED


async def raise_book_epoch(settings: VendingSettings) -> int:
    """Let the store be the truth, whatever was told before."""
    last, events = await bus.last_told(settings.kafka_bootstrap, "raise-book-epoch")
    async with stores.opened(settings.store_address, "raise-book-epoch") as stored:
        told = [event.book_epoch for event in events] + [last.book_epoch if last else 0]
        book_epoch = max(*told, await stored.tables.book_epoch()) + 1
        await stored.tables.raise_book_epoch(book_epoch, await stored.store.head())
        await stored.tables.end_copy()
        print(
            f"{stores.shown(settings.store_address)} is book epoch {book_epoch} from now on. "
            "At its next start vending publishes all of it anew."
        )
    return 0


async def import_ledger(settings: VendingSettings) -> int:
    """Bring back what a restored store lacks."""
    if stores.gives_positions(settings.store_address):
        raise WattvendError(
            "this server gives out positions itself, so what `ledger` has cannot be put back where "
            "it was: restore the server by its own means, or run raise-book-epoch"
        )
    keys = keys_of(settings)
    book_epoch, until = await _told_until(settings)
    async with stores.opened(settings.store_address, "import") as stored:
        store, tables = stored.store, stored.tables
        own_epoch = await tables.book_epoch()
        if book_epoch < own_epoch:
            print(
                f"Nothing was told yet in book epoch {own_epoch}, which this store was raised to: "
                "there is nothing to import."
            )
            return 0
        ledger = ledger_above(
            settings.kafka_bootstrap, await store.head(), book_epoch, "import-ledger"
        )
        with _shown("importing") as progress:
            done = await importing.import_ledger(
                store, tables, ledger, keys, lambda position: progress(position, until)
            )
        if book_epoch > own_epoch:
            await tables.raise_book_epoch(book_epoch, done.root.position)
    print(f"{done.count} events were imported; the book ends at position {done.root.position}.")
    if done.checkpoint is not None:
        vouched = done.checkpoint.root
        print(f"  It is what the checkpoint at position {vouched.position} vouches for,")
        print(f"  root {vouched.root.hex()}; {done.beyond} events came after that.")
    return 0


async def copy_book(settings: VendingSettings, to: str, *, is_ahead: bool) -> int:
    """Copy the book to another store; prove both equal, unless more may come to the source."""
    source_address = settings.store_address
    opened = stores.reading if is_ahead else stores.opened
    async with (
        opened(source_address, "copy-book") as source,
        stores.opened(to, "copy-book") as target,
    ):
        with _shown("copying") as progress:
            at_once_max = 1 if stores.gives_positions(to) else importing.APPENDS_AT_ONCE_MAX
            begin = partial(target.tables.begin_copy, stores.shown(source_address))
            count = await copying.copy_events(
                source.store, target.store, begin, progress, at_once_max
            )
        print(f"{count} events were copied to {stores.shown(to)}.")
        if is_ahead:
            print("Stop vending and run this again without --ahead: it copies the rest, and proves")
            return 0
        async with stores.reading(to, "copy-book proof") as again:
            with _shown("comparing") as progress:
                equal = await copying.compared(source.store, again.store, progress)
        same = equal.positions_are_same
        await begin()
        book_epoch = await _tables_moved(source, target, positions_are_same=same)
        await target.tables.end_copy()
    print(f"{equal.source.count} events in {equal.streams} streams are the same in both, each at")
    print("the same revision of its stream. The root of the hash chain:")
    print(f"  {equal.source.root.hex()}  {stores.shown(source_address)}")
    print(f"  {equal.target.root.hex()}  {stores.shown(to)}")
    print("Set WATTVEND_VENDING_STORE to the new store, and start vending.")
    if same:
        print("The positions and the tables beside the events are the same too.")
    else:
        print(f"Its positions are others, so it is book epoch {book_epoch}: all is published anew.")
    return 0


async def _tables_moved(
    source: stores.Stored, target: stores.Stored, *, positions_are_same: bool
) -> int:
    """Copy what is beside the events; return the book epoch. Raises NotTheSame."""
    book_epoch = await source.tables.book_epoch()
    if positions_are_same:
        await target.tables.raise_book_epoch(book_epoch, await source.tables.raised_at())
    else:  # what was told names positions of the source
        book_epoch += 1
        await target.tables.raise_book_epoch(book_epoch, await target.store.head())
    there = await target.tables.book_epoch()
    databases = source.database, target.database
    await copy_tables(*databases, positions_are_same=positions_are_same)
    differing = await differing_table(*databases, positions_are_same=positions_are_same)
    if there != book_epoch or differing:
        what = f"book epoch is {there}, not {book_epoch}" if not differing else f"table {differing}"
        raise copying.NotTheSame(f"beside the events the target differs: its {what}")
    return book_epoch


async def _told_until(settings: VendingSettings) -> tuple[int, int]:
    """Return the newest book epoch of ledger, and the last position told in it."""
    last, events = await bus.last_told(settings.kafka_bootstrap, "vending-command")
    told = [(event.book_epoch, event.position) for event in events]
    return max([*told, (last.book_epoch, last.root.position) if last else (0, FROM_START)])


async def verify(settings: VendingSettings, *, with_ledger: bool) -> int:
    """Follow the whole book; name the first event that is not what was told."""
    keys = keys_of(settings)
    async with stores.reading(settings.store_address, "verify") as stored:
        with ScratchLasts() as lasts, _shown("verifying") as progress:
            verdict = await verifying.verify(stored.store, stored.tables, lasts, keys, progress)
        fault = verdict.fault
        if with_ledger:
            book_epoch, until = await _told_until(settings)
            ledger = ledger_above(settings.kafka_bootstrap, FROM_START, book_epoch, "verify")
            with _shown("comparing with ledger") as progress:
                count, differs = await verifying.compare(
                    stored.store, ledger, lambda position: progress(position, until)
                )
            print(f"{count} events stand in ledger as they stand here")
            fault = verifying.first_of(fault, differs)
    if fault is not None:
        _print_fault(fault)
        return FAULT_FOUND
    _print_verdict(verdict, keys)
    return 0


async def trial_balance(chosen: argparse.Namespace, settings: VendingSettings) -> int:
    """Add up what was posted until a position, or an instant."""
    async with stores.reading(settings.store_address, "trial-balance") as stored:
        with _shown("adding up") as progress:
            until = Until(chosen.position, chosen.at)
            found = await balanced(stored.store, until, progress)
    for table in tables_of(found, chosen.legal_entity):
        print(f"{table}\n")
    print(f"{found.events} movements of money up to position {found.position}")
    if off := found.balance.off_nano():
        print(f"The postings do not sum to zero: off by {off}. Run verify: they were altered")
        return FAULT_FOUND
    return 0


async def seeds(settings: VendingSettings, shard: int, to: Path) -> int:
    """Write what a shard of metering can be seeded from, a JSON object a line."""
    shards = catalogue().shards
    if not 0 <= shard < shards:
        raise WattvendError(f"there is no shard {shard}: they are 0 to {shards - 1}")
    async with stores.reading(settings.store_address, "seeds") as stored:
        with _shown("reading the book") as progress:
            found = await seeding.seeding(stored.store, stored.tables, shard, shards, progress)
    lines = b"".join(orjson.dumps(line) + b"\n" for line in found.lines())
    await asyncio.to_thread(to.write_bytes, lines)
    print(f"{to}: of {found.accounts} accounts in shard {shard} {found.posted} were posted")
    return 0


def _instant_ms(text: str) -> int:
    """Return an instant that a person wrote."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no instant; write it with its zone, e.g. 2027-01-01T00:00+08:00"
        )
    return (instant - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def keys_of(settings: VendingSettings) -> PublicKeys:
    """Return the keys that the settings name: that which signs now, and those of before."""
    now = [] if settings.signing_key is None else [SigningKey(settings.signing_key).public]
    before = [] if settings.public_keys is None else public_keys_in(settings.public_keys)
    return PublicKeys([*now, *before])


@contextmanager
def _shown(what: str) -> Iterator[verifying.Progress]:
    """Show how far something is, where a person looks on."""
    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what)

        def progress(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        yield progress


def _print_fault(fault: Fault) -> None:
    print("The book is not what was told. The first that is wrong:")
    if fault.revision < 0:
        print(f"  one of the events at positions {fault.position} to {fault.until}")
    else:
        print(
            f"  position {fault.position}: {fault.stream} revision {fault.revision}, {fault.type}"
        )
    print(f"  {fault.what}")
    print("Keep this store for whoever looks into it, and restore a backup: see the runbook.")


def _print_verdict(verdict: Verdict, keys: PublicKeys) -> None:
    root, signed = verdict.root, verdict.signed
    print(f"{root.count} events in {verdict.streams} streams are unaltered; root {root.root.hex()}")
    print(f"  {verdict.linked} have a link of their own, {verdict.checkpoints} checkpoints hold")
    if signed is not None:
        after = root.count - signed.root.count
        print(
            f"  signed up to position {signed.root.position} by key {signed.key_id}; "
            f"{after} events came after that"
        )
    elif root.position > FROM_START:
        why = "no key is set" if not keys else "there is no checkpoint yet"
        print(f"  no signature was checked: {why}")
