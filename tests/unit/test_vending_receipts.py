"""Goal: receipts have numbers without a gap for each legal entity, and are papers that can be read.

Method: sales on a real SQLite file, numbered by the relay and anew from nothing; Hypothesis breaks
the order of the store into batches, repeats some and lets some fail. A PDF is read as a reader
would: its text is what its embedded font maps back to characters.
"""

import re
import shutil
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.common.kernel import names
from services.common.kernel.errors import Retriable
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters.api import VendingApi
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.receipt_pdf import lines, printed
from services.vending.application.numbering import DOCUMENTS, Numbering
from services.vending.application.receipts import Paper
from services.vending.application.stored import event_of
from services.vending.domain.event_store import StoredEvent, StreamId
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.origin import Origin
from services.vending.domain.tables import Document
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_approvals import of_type, publish
from tests.unit.test_vending_corrections import ALONE, reverse
from tests.unit.test_vending_office import refused
from tests.unit.test_vending_refunds import echo, refund
from tests.unit.test_vending_relay import Notebook, relaying
from tests.unit.vending_world import World
from wattvend.vending.v1 import vending_pb2 as pb

SHANGHAI = ZoneInfo("Asia/Shanghai")
UNKNOWN = "0b4d5ef4-6f0c-5d38-9a3c-7b1f8f6f2d10"


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        await opened.site("S2", entity="商场物业 Ltd")
        await opened.tariff("T2", legal_entity="商场物业 Ltd")
        await opened.policy("P2", legal_entity="商场物业 Ltd")
        await opened.account("A2", site_id="S2", tariff_id="T2", policy_id="P2")
        await publish(opened, **ALONE)
        yield opened


async def sold(world: World, amount_minor: int, account_id: str = "A1") -> CreditSold:
    event = (await world.sell(amount_minor, account_id)).event
    assert isinstance(event, CreditSold)
    return event


async def number(world: World) -> None:
    await Numbering(world.store, world.tables).catch_up(await world.store.head())


async def number_of(world: World, receipt_id: str) -> int:
    return (await world.office.receipts.paper(receipt_id)).number


async def test_each_legal_entity_has_one_series_over_sales_and_reversals(mall: World) -> None:
    first, other = await sold(mall, 100), await sold(mall, 70, "A2")
    reversal = (await reverse(mall, first.receipt_id)).event
    assert isinstance(reversal, SaleReversed)
    last = await sold(mall, 5)
    await number(mall)
    receipts = [first.receipt_id, reversal.receipt_id, last.receipt_id]
    assert [await number_of(mall, each) for each in receipts] == [1, 2, 3]
    assert await number_of(mall, other.receipt_id) == 1
    taken_back = await mall.office.receipts.paper(first.receipt_id)
    assert (taken_back.event, taken_back.other_number) == (first, 2)
    paper = await mall.office.receipts.paper(reversal.receipt_id)
    assert (paper.event, paper.other_number) == (reversal, 1)


async def test_the_relay_gives_the_numbers_and_a_paper_waits_for_its_own(mall: World) -> None:
    async with relaying(mall, Notebook()) as relay:
        await relay.caught_up()
        sale = await sold(mall, 100)
        assert await number_of(mall, sale.receipt_id) == 1
        assert await refused(mall.office.receipts.paper(UNKNOWN)) is Reason.RECEIPT_NOT_FOUND
    late = await sold(mall, 100)
    with pytest.raises(Retriable, match="ask again"):
        await mall.office.receipts.paper(late.receipt_id)
    async with relaying(mall, Notebook()):
        assert await number_of(mall, late.receipt_id) == 2


class Kept:
    """The tables of numbers, which may fail after or before they kept what they were given."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.until = 0
        self.fails = ""

    async def numbered_until(self) -> int:
        return self.until

    async def last_numbers(self) -> dict[str, int]:
        return {document.legal_entity: document.number for document in self.documents}

    async def keep_documents(self, documents: Sequence[Document], until: int) -> None:
        fails, self.fails = self.fails, ""
        if fails == "before":
            raise Retriable("nothing is kept")
        self.documents += documents
        self.until = until
        if fails == "after":
            raise Retriable("nobody knows")


def stored(position: int, entity: str) -> tuple[StoredEvent, Any]:
    """Return the place and the event of a sale; without an entity, of something else."""
    place = StoredEvent(position, StreamId("account-A1"), position, None, "", b"", b"")  # type: ignore[arg-type]
    if not entity:
        return place, None
    event = CreditSold(
        caller="", request_id="", fingerprint=b"", occurred_at_ms=0, account_id="A1",
        currency="CNY", legal_entity=entity, commodity="", postings=None, amount_minor=1,
        amount_nano=1, credited_nano=1, method="cash", receipt_id=str(position),
        recovered_emergency_minor=0, recovered_debt_minor=0, emergency_left_minor=0,
        debt_left_minor=0, fee_minor=0, energy_milli=None, price_micro=None,
    )  # fmt: skip
    return place, event


@given(
    st.lists(st.sampled_from(["", "LE1", "LE1", "LE2"]), min_size=1, max_size=40),
    st.lists(
        st.tuples(
            st.integers(1, 9), st.integers(0, 3), st.sampled_from(["", "", "before", "after"])
        )
    ),
)
@settings(max_examples=200, deadline=None)
async def test_numbers_have_no_gap_whatever_comes_again_or_fails(
    entities: list[str], steps: list[tuple[int, int, str]]
) -> None:
    events = [stored(position, entity) for position, entity in enumerate(entities, 1)]
    tables, at = Kept(), 0
    numbering = Numbering(None, tables)  # type: ignore[arg-type]
    for size, back, fails in [*steps, *[(9, 0, "")] * len(events)]:
        begin = max(at - back, 0)
        batch = events[begin : at + size]
        if not batch:
            break
        tables.fails = fails
        try:
            await numbering.give(batch, batch[-1][0].position)
        except Retriable:
            if size % 2:
                numbering = Numbering(None, tables)  # type: ignore[arg-type] # a restart
            continue
        at = max(at, batch[-1][0].position)
    counted: Counter[str] = Counter()
    wanted = []
    for position, entity in enumerate(entities, 1):
        if entity:
            counted[entity] += 1
            wanted.append((str(position), entity, counted[entity]))
    assert [(d.receipt_id, d.legal_entity, d.number) for d in tables.documents] == wanted


async def test_who_counts_behind_another_takes_nothing_back_from_him(mall: World) -> None:
    """As a vending whose database another one writes since, and who has not heard of it."""
    await sold(mall, 1)
    behind = Numbering(mall.store, mall.tables)
    await behind.catch_up(await mall.store.head())
    await mall.site("S3")
    without_a_paper = await mall.store.head()
    last = await sold(mall, 2)
    await number(mall)
    await behind.give([], without_a_paper)
    assert await mall.tables.numbered_until() == await mall.store.head()
    await number(mall)
    assert await number_of(mall, last.receipt_id) == 2


async def test_whoever_counts_again_comes_to_the_same_numbers(mall: World) -> None:
    for amount_minor in range(1, 8):
        await sold(mall, amount_minor, "A1" if amount_minor % 3 else "A2")
        if amount_minor % 2:
            await number(mall)
    await number(mall)
    again = Kept()
    numbering = Numbering(mall.store, again)  # type: ignore[arg-type]
    await numbering.catch_up(await mall.store.head())
    assert len(again.documents) == 7
    for document in again.documents:
        assert await mall.tables.document(document.receipt_id) == document
    events = map(event_of, await mall.store.read_all(0, 10_000))
    papers = [event.receipt_id for event in events if isinstance(event, DOCUMENTS)]
    assert [document.receipt_id for document in again.documents] == papers


async def test_where_a_book_lost_its_last_events_the_series_goes_on_without_them(
    mall: World,
) -> None:
    for amount_minor in (1, 2, 3):
        await sold(mall, amount_minor)
    await number(mall)
    last = (await mall.store.read_all(0, 10_000))[-1].position
    await mall.tables.raise_book_epoch(2, last - 1)
    assert await mall.tables.last_numbers() == {"LE1": 2}
    assert await mall.tables.numbered_until() == last - 1
    await number(mall)
    assert await mall.tables.last_numbers() == {"LE1": 3}


# --- the paper -----------------------------------------------------------------------------------


def text_of(pdf: bytes) -> str:
    """Return the text of a PDF of ours, by the map of its embedded font back to characters."""
    streams = []
    for found in re.finditer(rb"stream\n(.*?)\nendstream", pdf, re.DOTALL):
        try:
            streams.append(zlib.decompress(found[1]))
        except zlib.error:
            streams.append(found[1])
    (mapping,) = [s for s in streams if b"beginbfchar" in s or b"beginbfrange" in s]
    shown: dict[int, str] = {}
    for code, value in re.findall(rb"<([0-9A-Fa-f]{4})> <([0-9A-Fa-f]{4,})>\n", mapping):
        shown[int(code, 16)] = bytes.fromhex(value.decode()).decode("utf-16-be")
    pages = b"\n".join(s for s in streams if b" Tf" in s and b"BT" in s)
    said = []
    for raw in re.findall(rb"\(((?:[^\\)]|\\.)*)\) Tj", pages, re.DOTALL):
        plain = re.sub(rb"\\([nrtbf()\\])", lambda m: ESCAPES.get(m[1], m[1]), raw)
        codes = [int.from_bytes(plain[i : i + 2], "big") for i in range(0, len(plain), 2)]
        said.append("".join(shown.get(code, "?") for code in codes))
    return "\n".join(said)


ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}


async def test_a_paper_says_all_in_two_languages_and_is_the_same_each_time(mall: World) -> None:
    terms = {"fee_ppm": 15_000, "emergency_minor": 300}
    await mall.policy("P2", legal_entity="商场物业 Ltd", **terms)
    await mall.grant("A2")
    await mall.owe(5_000, 100_000, "A2")
    sale = await sold(mall, 10_000, "A2")
    await number(mall)
    paper = await mall.office.receipts.paper(sale.receipt_id)
    pdf = printed(paper)
    assert pdf == printed(paper)
    assert pdf.startswith(b"%PDF-")
    assert b"/FontFile2" in pdf, "the font is in it"
    assert len(pdf) < 60_000, "and not all of it"
    text = text_of(pdf)
    assert "商场物业 Ltd" in text
    assert "收据 Receipt" in text
    for label, value in lines(paper):
        assert label in text, label
        assert value.split()[0] in text, value
    for money in ("100.00 CNY", "1.50 CNY", "3.00 CNY", "9.85 CNY", "85.65 CNY"):
        assert money in text
    assert "已冲正" not in text


async def test_a_reversed_sale_is_marked_and_its_reversal_names_it(mall: World) -> None:
    sale = await sold(mall, 10_000)
    taken_back = (await reverse(mall, sale.receipt_id)).event
    assert isinstance(taken_back, SaleReversed)
    await number(mall)
    marked = text_of(printed(await mall.office.receipts.paper(sale.receipt_id)))
    assert "已冲正 REVERSED № 00000002" in marked
    reversal = text_of(printed(await mall.office.receipts.paper(taken_back.receipt_id)))
    for said in ("冲正单 Reversal", "00000001", "wrong account", "100.00 CNY"):
        assert said in reversal


async def test_the_mark_of_a_reversal_is_on_every_page(mall: World) -> None:
    event = replace(
        await sold(mall, 10_000),
        fee_minor=10,
        recovered_emergency_minor=10,
        recovered_debt_minor=10,
        origin=Origin("counter-of-the-mall-at-zhangjiang-hi-tech-park/2nd-floor", "u-0123456789"),
    )
    for legal_entity, count in (("商场物业 Ltd", 1), ("上海" * 35, 1), ("上海" * 100, 2)):
        paper = Paper(1, replace(event, legal_entity=legal_entity), "S1", SHANGHAI, 2, "tenant-1")
        pdf = printed(paper)
        pages = re.findall(rb"/Type\s*/Page\b", pdf)
        assert (len(pages), text_of(pdf).count("已冲正 REVERSED № 00000002")) == (count, count)


async def test_a_character_that_the_font_has_not_is_told_by_its_number(
    mall: World, caplog: pytest.LogCaptureFixture
) -> None:
    event = replace(await sold(mall, 10_000), legal_entity="𠮷田物业 㛃 😀")
    text = text_of(printed(Paper(1, event, "S1", SHANGHAI, None, None)))
    assert "[U+20BB7]田物业 [U+36C3] [U+1F600]" in text
    assert "missing" not in caplog.text


async def test_a_refund_is_a_paper_of_the_series_too(mall: World) -> None:
    await sold(mall, 1_000)
    with pytest.raises(Retriable):
        await refund(mall, 0, mall.ask("all"))
    await echo(mall, 0)
    (paid,) = await of_type(mall, "credit-refunded")
    assert isinstance(paid, CreditRefunded)
    await number(mall)
    paper = await mall.office.receipts.paper(paid.receipt_id)
    assert (paper.number, paper.other_number) == (2, None)
    text = text_of(printed(paper))
    for said in ("退款单 Refund", "00000002", "10.00 CNY", "moves out"):
        assert said in text


async def test_receipts_of_an_account_are_listed_newest_first_by_a_filter(mall: World) -> None:
    api = VendingApi(Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0))
    call = Call("till", "", "10.0.3.7", None)

    async def listed(said: str = "", size: int = 0, token: str = "") -> pb.ListReceiptsResponse:
        request = pb.ListReceiptsRequest(
            parent="accounts/A1", filter=said, page_size=size, page_token=token
        )
        return await api.ListReceipts(request, call)

    sales = [await sold(mall, amount) for amount in (100, 200, 300)]
    await sold(mall, 999, "A2")
    await number(mall)
    taken_back = (await reverse(mall, sales[1].receipt_id)).event
    assert isinstance(taken_back, SaleReversed)
    found = (await listed()).receipts
    assert [each.WhichOneof("document") for each in found] == ["reversal", "sale", "sale", "sale"]
    assert [each.number for each in found] == [0, 3, 2, 1]  # the newest has none yet
    await number(mall)
    found = (await listed()).receipts
    assert [each.number for each in found] == [4, 3, 2, 1]
    assert [each.other_number for each in found] == [2, 0, 4, 0]
    for each in found:
        assert each == await api.GetReceipt(pb.GetReceiptRequest(name=each.name), call)
    (only,) = (await listed("type = reversal AND method = cash")).receipts
    assert only.reversal.reversed_receipt == names.RECEIPT.name(sales[1].receipt_id)
    pages: list[list[int]] = []
    token = ""
    while not pages or token:
        page = await listed("type = sale", 2, token)
        pages.append([each.sale.amount_minor for each in page.receipts])
        token = page.next_page_token
    assert pages == [[300, 200], [100]]
    assert await refused(listed("kind = sale")) is Reason.INVALID_ARGUMENT


async def test_a_restored_book_gives_a_lost_number_again_and_never_its_id(tmp_path: Path) -> None:
    """What docs/operations/restored.md says of receipts."""
    path, backup = tmp_path / "events.sqlite", tmp_path / "backup.sqlite"
    async with vending_world.world(path) as world:
        await world.mall()
        kept = await sold(world, 100)
        await number(world)
    shutil.copy(path, backup)
    async with vending_world.world(path) as world:
        request = world.ask("lost", request_id=UUID(int=7))
        lost = (await world.sell(200, request=request)).event
        assert isinstance(lost, CreditSold)
        await number(world)
        assert await number_of(world, lost.receipt_id) == 2
    async with vending_world.world(backup) as restored:
        other = await sold(restored, 300)
        again = (await restored.sell(200, request=request)).event
        assert isinstance(again, CreditSold)
        await number(restored)
        papers = {
            event.receipt_id: await number_of(restored, event.receipt_id)
            for event in (kept, other, again)
        }
    assert papers == {kept.receipt_id: 1, other.receipt_id: 2, lost.receipt_id: 3}
