"""Commands for a person at the book: they read it beside the running service, or mend it without.

Each prints its answer to stdout and how far it is to stderr, and returns an exit code.
"""

# ruff: noqa: T201 - what they print is the answer to a person

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aiokafka.errors import KafkaError
from rich.console import Console
from rich.progress import Progress

from services.common.kernel.errors import WattvendError
from services.common.runtime import service
from services.vending.adapters import bus, stores
from services.vending.adapters.keys import PublicKeys, SigningKey, public_keys_in
from services.vending.adapters.scratch import ScratchLasts
from services.vending.application import verifying
from services.vending.application.verifying import Fault, Verdict
from services.vending.config import VendingSettings
from services.vending.domain.event_store import FROM_START

RUN = "run"
FAULT_FOUND = 1
"""The exit code of `verify` where the book is not what was told."""


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for; without a command that is to run the service."""
    parser = argparse.ArgumentParser(
        prog="python -m services.vending",
        description="The book of record: runs it, or answers and mends what a person asks for. "
        "All settings are environment variables.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser(RUN, help="run the service; so does no command")
    commands.add_parser(
        "verify",
        help="follow the whole book and name the first event that is not what was told "
        f"(exit code {FAULT_FOUND}); vending may run meanwhile",
    )
    commands.add_parser(
        "raise-book-epoch",
        help="this store, restored or new, is the truth from now on; stop vending first",
    )
    parser.set_defaults(command=RUN)
    return parser.parse_args(arguments)


def carried_out(chosen: argparse.Namespace, settings: VendingSettings) -> int:
    """Do what was asked for; return the exit code."""
    work = {"verify": verify, "raise-book-epoch": raise_book_epoch}[chosen.command]
    try:
        return asyncio.run(work(settings))
    except (WattvendError, KafkaError) as failed:
        print(f"vending: {failed}", file=sys.stderr)
        return service.EXIT_FAILED


async def raise_book_epoch(settings: VendingSettings) -> int:
    """Let the store be the truth, whatever was told before."""
    last, events = await bus.last_told(settings.kafka_bootstrap, "raise-book-epoch")
    async with stores.sqlite(settings.store_path) as stored:
        told = [event.book_epoch for event in events] + [last.book_epoch if last else 0]
        book_epoch = max(*told, await stored.tables.book_epoch()) + 1
        await stored.tables.raise_book_epoch(book_epoch, await stored.store.head())
        print(
            f"{settings.store_path} is book epoch {book_epoch} from now on. "
            "At its next start vending publishes all of it anew."
        )
    return 0


async def verify(settings: VendingSettings) -> int:
    """Follow the whole book; name the first event that is not what was told."""
    keys = keys_of(settings)
    async with stores.reading_sqlite(settings.store_path) as stored:
        with ScratchLasts() as lasts, _shown("verifying") as progress:
            verdict = await verifying.verify(stored.store, stored.tables, lasts, keys, progress)
    if verdict.fault is not None:
        _print_fault(verdict.fault)
        return FAULT_FOUND
    _print_verdict(verdict, keys)
    return 0


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
        print(f"  signed up to position {signed.root.position} by key {signed.key_id}")
    elif root.position > FROM_START:
        why = "no key is set" if not keys else "there is no checkpoint yet"
        print(f"  no signature was checked: {why}")
