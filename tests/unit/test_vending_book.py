"""Goal: many commands on one stream are decided in order, stored together and each answered truly.

Method: the book on the memory store, made to conflict, to lose answers and to refuse.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry

import schemas
from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.common.runtime.topics import catalogue
from services.vending.adapters.api.desk import fingerprint_of
from services.vending.adapters.memory_store import MemoryEventStore
from services.vending.application.book import COMMANDS_PER_APPEND_MAX, Book, Outcome
from services.vending.domain import site
from services.vending.domain.decisions import (
    Accepted,
    Answers,
    Decision,
    Request,
    fingerprint,
    stamp,
)
from services.vending.domain.event_store import (
    FROM_START,
    Appended,
    NewEvent,
    NotTheWriter,
    StoreUnavailable,
    StoreWentBack,
    StreamId,
)
from services.vending.domain.events import EVENTS
from services.vending.domain.events.sites import CutsHeld
from services.vending.domain.site import HoldCuts, RegisterSite, ReleaseCuts, Site
from services.vending.metrics import Metrics
from tests.unit.vending_chain import BrokenChain, check_stream_chain

CLIENTS = 64


def asking(number: int) -> Request:
    return Request("till", str(UUID(int=number)), fingerprint("test", number), 1)


class Restless(MemoryEventStore):
    """A memory store whose next appends, and looks at who writes, fail as told.

    "lost", "not stored", "another writes", "went back".
    """

    def __init__(self) -> None:
        super().__init__()
        self.mishaps: list[str] = []
        self.appends = 0

    async def append(self, stream: StreamId, expected: int, events: Sequence[NewEvent]) -> Appended:
        await asyncio.sleep(0)
        self.appends += 1
        mishap = self.mishaps.pop(0) if self.mishaps else ""
        if mishap == "not stored":
            raise StoreUnavailable("no answer")
        self._lose(mishap)
        appended = await super().append(stream, expected, events)
        if mishap == "lost":
            raise StoreUnavailable("no answer")
        return appended

    async def check_writer(self) -> None:
        self._lose(self.mishaps.pop(0) if self.mishaps else "")

    def _lose(self, mishap: str) -> None:
        if mishap == "another writes":
            raise NotTheWriter("vending-1 has become the writer")
        if mishap == "went back":
            raise StoreWentBack("the event store was restored to an earlier point")


@pytest.fixture
def store() -> Restless:
    return Restless()


@pytest.fixture
def book(store: Restless) -> Book:
    return Book(store, Metrics(CollectorRegistry()))


async def test_each_append_that_has_to_be_made_again_is_counted(store: Restless) -> None:
    registry = CollectorRegistry()
    store.mishaps = ["not stored", "lost"]
    book = Book(store, Metrics(registry))
    await tell(book, register())  # its state is not at hand
    store.mishaps = ["not stored"]
    await tell(book, HoldCuts(asking(2), "S1", "test"))  # at hand
    name = "wattvend_vending_appends_total"
    assert registry.get_sample_value(name, {"result": "retried"}) == 3
    assert registry.get_sample_value(name, {"result": "stored"}) == 1


async def tell(book: Book, command: RegisterSite | HoldCuts | ReleaseCuts) -> Outcome[Site]:
    return await book.submit(Site, command.site_id, lambda state: site.decide(state, command))


def register(number: int = 1) -> RegisterSite:
    return RegisterSite(asking(number), "S1", "Mall", "UTC", "CNY", "LE1", 10)


async def toggle(book: Book, client: int) -> Reason | int:
    """Hold or release, whichever; an answer of each kind is right for somebody."""
    kind = HoldCuts if client % 2 else ReleaseCuts
    try:
        return (await tell(book, kind(asking(100 + client), "S1", "test"))).revision
    except InvalidInput as refused:
        return refused.reason


async def test_64_clients_on_one_stream_are_each_answered_truly_by_few_appends(
    book: Book, store: Restless
) -> None:
    await tell(book, register())
    answers = await asyncio.gather(*(toggle(book, n) for n in range(CLIENTS)))
    revisions = [answer for answer in answers if isinstance(answer, int)]
    events = await store.read(StreamId("site-S1"))
    assert sorted(revisions) == list(range(1, len(events)))
    held = [event.type == "cuts-held" for event in events[1:]]
    assert held == [n % 2 == 0 for n in range(len(held))], "they alternate: each saw the one before"
    assert store.appends <= 2 + CLIENTS // COMMANDS_PER_APPEND_MAX


@pytest.mark.parametrize("leaves", ["while it waits", "when it is decided"])
async def test_whose_caller_left_is_done_only_where_it_was_decided_and_known_by_its_request(
    book: Book, store: Restless, leaves: str
) -> None:
    """As at a deadline: repeated with its id, it is done once in both cases."""
    await tell(book, register())
    release = ReleaseCuts(asking(2), "S1", "test")
    before = asyncio.create_task(tell(book, HoldCuts(asking(3), "S1", "test")))
    if leaves == "when it is decided":
        await before
    asked = asyncio.create_task(tell(book, release))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(before, asked, return_exceptions=True)
    await book.drained()
    said = [event.type for event in await store.read(StreamId("site-S1"))]
    decided = ["cuts-released"] if leaves == "when it is decided" else []
    assert said == ["site-registered", "cuts-held", *decided]
    assert (await tell(book, release)).revision == 2
    assert len(await store.read(StreamId("site-S1"))) == 3


@pytest.mark.parametrize("mishaps", [["lost"], ["not stored"], ["not stored", "lost"]])
async def test_an_unknown_outcome_is_resolved_from_the_state(
    book: Book, store: Restless, mishaps: list[str]
) -> None:
    store.mishaps = mishaps
    outcome = await tell(book, register())
    assert outcome.revision == 0
    assert len(await store.read_all(FROM_START, 10)) == 1


async def test_a_book_that_another_process_writes_refuses_all_commands_and_answers_queries(
    book: Book, store: Restless
) -> None:
    await tell(book, register())
    store.mishaps = ["another writes"] * 2  # also when it is tried with care
    with pytest.raises(NotTheWriter, match="vending-1"):
        await tell(book, HoldCuts(asking(2), "S1", "test"))
    assert store.mishaps == []
    with pytest.raises(Retriable, match="vending-1"):
        await tell(book, HoldCuts(asking(3), "S1", "test"))
    assert await book.state_of(Site, "S1") is not None
    assert len(await store.read_all(FROM_START, 10)) == 1


async def test_a_book_whose_store_went_back_says_so_to_all_and_what_to_do(
    book: Book, store: Restless
) -> None:
    """It is no failure of the service, and no repeat helps before a start has compared both."""
    await tell(book, register())
    store.mishaps = ["went back"] * 2
    for number in (2, 3):
        with pytest.raises(Retriable, match=r"restored to an earlier point.*start vending anew"):
            await tell(book, HoldCuts(asking(number), "S1", "test"))
    assert store.mishaps == []
    assert not book.is_superseded, "what was stored is still told: ledger brings it back"
    assert len(await store.read_all(FROM_START, 10)) == 1


@pytest.mark.parametrize(
    ("mishap", "match", "superseded"),
    [("another writes", "vending-1", True), ("went back", "start vending anew", False)],
)
async def test_a_book_that_is_not_its_own_any_more_is_known_before_a_command_fails(
    book: Book, store: Restless, mishap: str, match: str, superseded: bool
) -> None:
    await tell(book, register())
    await book.check_writer()
    assert (book.refusing, book.is_superseded) == ("", False)
    store.mishaps = [mishap]
    with pytest.raises(Retriable, match=match):
        await book.check_writer()
    appends = store.appends
    with pytest.raises(Retriable, match=match):
        await tell(book, HoldCuts(asking(2), "S1", "test"))
    assert (store.appends, book.is_superseded) == (appends, superseded)


async def test_a_store_that_stays_away_is_reported_as_such(book: Book, store: Restless) -> None:
    store.mishaps = ["not stored"] * 50
    with pytest.raises(StoreUnavailable):
        await tell(book, register())
    store.mishaps = []
    assert (await tell(book, register())).revision == 0


async def test_another_writer_on_the_stream_is_noticed_and_decided_on_again(
    book: Book, store: Restless
) -> None:
    await tell(book, register())
    await tell(Book(store, Metrics(CollectorRegistry())), HoldCuts(asking(2), "S1", "test"))
    with pytest.raises(InvalidInput, match="are held"):
        await tell(book, HoldCuts(asking(3), "S1", "test"))


async def test_a_request_of_another_stream_fails_alone_among_its_neighbours(
    book: Book, store: Restless
) -> None:
    await tell(book, register())
    elsewhere = RegisterSite(asking(3), "S2", "Mall", "UTC", "CNY", "LE1", 10)
    await tell(book, elsewhere)
    answers = await asyncio.gather(
        tell(book, HoldCuts(asking(2), "S1", "test")),
        tell(book, ReleaseCuts(asking(3), "S1", "test")),
        tell(book, ReleaseCuts(asking(4), "S1", "test")),
        return_exceptions=True,
    )
    assert [isinstance(answer, InvalidInput) for answer in answers] == [False, True, False]
    assert isinstance(answers[1], InvalidInput)
    assert answers[1].reason is Reason.REQUEST_ID_REUSED
    assert len(await store.read(StreamId("site-S1"))) == 3


def order(release: int, **content: Any) -> Any:
    """Return a message as a release has it: the second one's gained two fields."""
    kind = DescriptorProto(name="SellRequest")
    names = ("request_id", "account_id", "method", "channel")[: 2 * release]
    for number, name in enumerate(names, 1):
        field = kind.field.add(name=name, number=number, label=1, type=9)
        if name == "channel":
            field.proto3_optional, field.oneof_index = True, 0
            kind.oneof_decl.add(name="_channel")
    file = FileDescriptorProto(name="sell.proto", syntax="proto3", message_type=[kind])
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("SellRequest"))(**content)


def test_a_request_is_the_same_when_its_message_has_gained_fields_that_it_does_not_set() -> None:
    sent, again = order(1, account_id="A1"), order(2, request_id="1", account_id="A1")
    assert fingerprint_of(sent) == fingerprint_of(again)
    for more in ({"method": "cash"}, {"channel": ""}):
        assert fingerprint_of(order(2, account_id="A1", **more)) != fingerprint_of(sent)
    assert fingerprint_of(order(2, account_id="A2")) != fingerprint_of(sent)


async def test_a_command_whose_decision_breaks_fails_alone(book: Book) -> None:
    await tell(book, register())

    def broken(_: Site | None) -> Decision:
        raise ZeroDivisionError

    answers = await asyncio.gather(
        tell(book, HoldCuts(asking(2), "S1", "test")),
        book.submit(Site, "S1", broken),
        tell(book, ReleaseCuts(asking(4), "S1", "test")),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [Outcome, ZeroDivisionError, Outcome]


async def test_of_a_command_whose_second_event_cannot_be_stored_nothing_is(
    book: Book, store: Restless
) -> None:
    await tell(book, register())
    before = await store.head()

    def odd(_: Site | None) -> Decision:
        held = decide_hold(asking(3))
        return Accepted((held, replace(held, occurred_at_ms=2**70)))

    answers = await asyncio.gather(
        tell(book, HoldCuts(asking(2), "S1", "test")),
        book.submit(Site, "S1", odd),
        tell(book, ReleaseCuts(asking(4), "S1", "test")),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [Outcome, InvalidInput, Outcome]
    assert await store.head() == before + 2
    assert [event.revision for event in await store.read(StreamId("site-S1"))] == [0, 1, 2]
    check_stream_chain(await store.read(StreamId("site-S1")))


def decide_hold(request: Request) -> CutsHeld:
    return CutsHeld(**stamp(request), site_id="S1", reason="test")


async def test_an_altered_event_breaks_the_chain_of_its_stream(book: Book, store: Restless) -> None:
    await tell(book, register())
    for number in range(2, 6):
        await toggle(book, number)
    events = await store.read_all(FROM_START, 10)
    check_stream_chain(events)
    for index, event in enumerate(events[:-1]):
        altered = type(event)(
            event.position,
            event.stream,
            event.revision,
            event.id,
            event.type,
            event.data[:-1] + b"?",
            event.meta,
        )
        with pytest.raises(BrokenChain, match=f"revision {index + 1}"):
            check_stream_chain([*events[:index], altered, *events[index + 1 :]])


def test_old_answers_stay_as_they_were_when_successors_part() -> None:
    def event(number: int) -> CutsHeld:
        request = asking(number)
        return CutsHeld(
            caller=request.caller,
            request_id=str(request.request_id),
            fingerprint=request.fingerprint,
            occurred_at_ms=1,
            site_id="S1",
            reason="",
        )

    base = Answers().after(event(1))
    left = base.after(event(2)).after(event(1))
    right = base.after(event(3))
    assert [base.get(asking(n).key) is not None for n in (1, 2, 3)] == [True, False, False]
    assert [left.get(asking(n).key) is not None for n in (1, 2, 3)] == [True, True, False]
    assert [right.get(asking(n).key) is not None for n in (1, 2, 3)] == [True, False, True]
    assert [a.get(asking(1).key).revisions for a in (base, left, right)] == [(0,), (0, 2), (0,)]  # type: ignore[union-attr]


def test_the_events_of_the_code_are_those_of_the_schemas() -> None:
    assert set(EVENTS) == set(catalogue().events)
    for subject, kind in EVENTS.items():
        path = Path(schemas.__file__).parent / "avro" / f"{subject}.avsc"
        columns = [column["name"] for column in json.loads(path.read_text())["fields"]]
        names = [field.name for field in fields(kind) if field.name != "origin"]
        assert sorted(names) == sorted(columns), subject
