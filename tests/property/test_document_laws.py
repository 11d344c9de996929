"""Goal: whoever drafts, submits, approves and withdraws, a document is where its page says.

Method: Hypothesis plays persons on the office over a real SQLite file: drafts of a tariff and of a
policy, for now, later or too early, one instead of another; submissions, approvals, refusals;
publications without a document; time that passes, with and without anybody who looks what is due.
The process dies before or after any of its appends and is started again. A clerk with a list says
what each answer is; after each step all documents and versions must be where his list has them.
"""

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.common.kernel import filters
from services.common.kernel.errors import InvalidInput
from services.vending.domain.approval import Approve, Decline
from services.vending.domain.authority import rules_text
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.document import Kind, State, Submit, Withdraw
from services.vending.domain.events.event import Event
from services.vending.domain.origin import Origin
from services.vending.domain.policy import PublishPolicy
from services.vending.domain.tariff import PublishTariff
from tests.unit.test_vending_documents import policy, tariff
from tests.unit.vending_crashing import Died, MortalStore, mortal
from tests.unit.vending_world import LEAD_MS, T0_MS, World

HOUR_MS = 3_600_000
LASTS_MS = 72 * HOUR_MS
PERSONS = ("u-alice", "u-bob", "u-carol")
EXAMPLES = int(os.environ.get("WATTVEND_PROPERTY_EXAMPLES", "100"))
TARGETS = {Kind.TARIFF: "T1", Kind.POLICY: "P1"}


@dataclass
class Sheet:
    """A document on the clerk's list. `became`: its version's number."""

    kind: Kind
    at_ms: int
    base: int
    state: str = "draft"
    why: str = ""
    by: str = ""
    expires_ms: int = 0
    became: int = 0


@dataclass
class Planned:
    """A version: from when on it shall apply, and whether it does."""

    at_ms: int
    begun: bool


@dataclass
class Clerk:
    """The model. `alone`: one person may publish."""

    alone: bool
    now_ms: int = T0_MS
    sheets: list[Sheet] = field(default_factory=list)
    versions: dict[Kind, list[Planned]] = field(
        default_factory=lambda: {kind: [Planned(T0_MS, begun=True)] for kind in Kind}
    )

    def refusal(self, kind: Kind, at_ms: int) -> str:
        if at_ms and at_ms < self.now_ms:
            return "EFFECTIVE_IN_PAST"
        return "EFFECTIVE_TOO_EARLY" if at_ms and at_ms < self.earliest_ms(kind) else ""

    def earliest_ms(self, kind: Kind) -> int:
        if kind is Kind.POLICY:
            return self.now_ms
        return max(self.now_ms + LEAD_MS, self.versions[kind][-1].at_ms)

    def publish(self, kind: Kind, at_ms: int) -> int:
        begins_ms = at_ms or self.earliest_ms(kind)
        self.versions[kind].append(Planned(begins_ms, begun=kind is Kind.POLICY and not at_ms))
        return len(self.versions[kind])

    def draft(self, kind: Kind, at_ms: int, replaced: int | None) -> str:
        if refusal := self.refusal(kind, at_ms):
            return refusal
        self.sheets.append(Sheet(kind, at_ms, len(self.versions[kind])))
        if replaced is not None and not self.sheets[replaced].became:
            self.withdraw(self.sheets[replaced])
        return "done"

    def publish_sheet(self, sheet: Sheet) -> str:
        stale = "DOCUMENT_STALE" if sheet.base != len(self.versions[sheet.kind]) else ""
        if refusal := stale or self.refusal(sheet.kind, sheet.at_ms):
            return refusal
        sheet.became, sheet.state = self.publish(sheet.kind, sheet.at_ms), "published"
        return ""

    def submit(self, sheet: Sheet, person: str) -> str:
        match sheet.state:
            case "withdrawn":
                return "DOCUMENT_DECIDED"
            case "declined":
                return "APPROVAL_DECLINED"
            case "expired":
                return "APPROVAL_EXPIRED"
            case "failed":
                return sheet.why
            case "draft":
                return self.first_submit(sheet, person)
        return "done"

    def first_submit(self, sheet: Sheet, person: str) -> str:
        if self.alone:
            return self.publish_sheet(sheet) or "done"
        stale = sheet.base != len(self.versions[sheet.kind])
        if refusal := ("DOCUMENT_STALE" if stale else self.refusal(sheet.kind, sheet.at_ms)):
            return refusal
        sheet.state, sheet.by = "submitted", person
        sheet.expires_ms = self.now_ms + LASTS_MS
        return "done"

    def judge(self, sheet: Sheet, person: str, *, approves: bool) -> str:
        if sheet.state == "expired":  # until somebody looks, it is one that nobody took down
            return "APPROVAL_EXPIRED" if not sheet.why else "APPROVAL_DECIDED"
        if sheet.state != "submitted":
            return "APPROVAL_DECIDED"
        if not approves:
            sheet.state = "declined"
        elif person == sheet.by:
            return "SAME_PERSON"
        elif why := self.publish_sheet(sheet):
            sheet.state, sheet.why = "failed", why
        return "done"

    def withdraw(self, sheet: Sheet) -> str:
        if sheet.state == "withdrawn":
            return "DOCUMENT_DECIDED"
        if sheet.became:
            return self.take_back(sheet)
        if sheet.by:
            return self.judge(sheet, "", approves=False)
        if sheet.state != "draft":
            return "DOCUMENT_DECIDED"
        sheet.state = "withdrawn"
        return "done"

    def take_back(self, sheet: Sheet) -> str:
        planned = self.versions[sheet.kind]
        is_last = sheet.became == len(planned)
        if self.where(sheet.kind, sheet.became - 1) != "scheduled" or not is_last:
            return "DOCUMENT_DECIDED"
        at_ms = planned[-1].at_ms
        if refusal := self.refusal(sheet.kind, at_ms):
            return refusal
        if not self.alone:
            return "APPROVAL_REQUIRED"
        self.publish(sheet.kind, at_ms)
        sheet.became, sheet.state = 0, "withdrawn"
        return "done"

    def tick(self, hours: int) -> None:
        self.now_ms += hours * HOUR_MS
        for sheet in self.sheets:
            if sheet.state == "submitted" and self.now_ms >= sheet.expires_ms:
                sheet.state = "expired"
        for version in self.versions[Kind.TARIFF]:
            version.begun = version.at_ms <= self.now_ms

    def look(self) -> None:
        """Do what is due."""
        for sheet in self.sheets:
            sheet.why = sheet.why or ("told" if sheet.state == "expired" else "")
        for number, version in enumerate(self.versions[Kind.POLICY]):
            if version.at_ms <= self.now_ms and self.where(Kind.POLICY, number) == "scheduled":
                version.begun = True

    def where(self, kind: Kind, index: int) -> str:
        mine, later = self.versions[kind][index], self.versions[kind][index + 1 :]
        if any(other.begun for other in later):
            return "superseded"
        if mine.begun:
            return "in-force"
        return "superseded" if any(o.at_ms <= mine.at_ms for o in later) else "scheduled"

    def state(self, sheet: Sheet) -> str:
        return self.where(sheet.kind, sheet.became - 1) if sheet.became else sheet.state


class Documents(RuleBasedStateMachine):
    """The office beside the clerk."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.stack = AsyncExitStack()
        self.clerk = Clerk(alone=False)
        self.ids: list[str] = []
        self.asked = 0

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        self.stack = AsyncExitStack()
        path = Path(self.folder.name) / "events.sqlite"
        self.world: World
        self.store: MortalStore
        self.world, self.store = await self.stack.enter_async_context(mortal(path))
        self.world.clock.at_ms = self.clerk.now_ms

    async def restart(self) -> None:
        await self.stack.aclose()
        await self.start()
        await self.world.office.complete()

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()
        self.folder.cleanup()

    @initialize(alone=st.sampled_from([False, False, True]))
    def open(self, alone: bool) -> None:
        self.clerk.alone = alone
        rules = dict.fromkeys(("price-change", "policy-change")) if alone else {}

        async def opened() -> None:
            await self.start()
            await self.world.tariff()
            await self.world.policy(legal_entity="LE1")
            await self.world.may_alone(rules_text(rules))

        self.run(opened())

    def request(self, person: str) -> Request:
        self.asked += 1
        request_id, content = str(UUID(int=self.asked)), fingerprint(str(self.asked))
        at_ms = self.clerk.now_ms
        return Request("web", request_id, content, at_ms, origin=Origin("web", person))

    def publication(
        self, kind: Kind, request: Request, at_ms: int
    ) -> PublishTariff | PublishPolicy:
        if kind is Kind.TARIFF:
            return tariff(request, effective_at_ms=at_ms, price_micro=self.asked)
        return policy(request, effective_at_ms=at_ms, alarm_1_minor=1_000 + self.asked)

    def answer(self, work: Any, expected: str) -> None:
        """Ask as callers do, again after the process died; then somebody looks what is due."""

        async def until_answered() -> str:
            while True:
                try:
                    await work()
                except InvalidInput as refused:
                    return refused.reason.value
                except Died:
                    await self.restart()
                else:
                    return "done"

        assert self.run(until_answered()) == expected
        self.clerk.look()
        self.run(self.look())

    async def look(self) -> None:
        """Do what is due. Of what dies there each process is logged, and the next one tried."""
        with suppress(Died):
            await self.world.office.complete()
        if self.store.dead:
            await self.restart()

    persons = st.sampled_from(PERSONS)

    @rule(
        kind=st.sampled_from(list(Kind)),
        person=persons,
        hours=st.sampled_from([None, None, None, -1, 0, 1, 24, 24, 48, 100]),
        data=st.data(),
    )
    def draft(self, kind: Kind, person: str, hours: int | None, data: st.DataObject) -> None:
        at_ms = 0 if hours is None else self.clerk.now_ms + hours * HOUR_MS
        of_kind = [i for i, sheet in enumerate(self.clerk.sheets) if sheet.kind is kind]
        replaced = data.draw(st.sampled_from([None, None, *of_kind]))
        said = self.publication(kind, self.request(person), at_ms)
        instead_of = "" if replaced is None else self.ids[replaced]
        expected = self.clerk.draft(kind, at_ms, replaced)
        drafted: list[str] = []

        async def asked() -> None:
            paper = await self.world.office.documents.draft(said.request, said, instead_of)
            drafted.append(paper.document.document_id)

        self.answer(asked, expected)
        self.ids += drafted

    @rule(kind=st.sampled_from(list(Kind)), person=persons)
    def publish_without_a_document(self, kind: Kind, person: str) -> None:
        said = self.publication(kind, self.request(person), 0)
        expected = "done" if self.clerk.alone else "APPROVAL_REQUIRED"
        if self.clerk.alone:
            self.clerk.publish(kind, 0)
        self.answer(lambda: self.world.office.approvals.ask(said), expected)

    def chosen(self, data: st.DataObject, *, submitted: bool = False) -> tuple[Sheet, str]:
        sheets = [i for i, s in enumerate(self.clerk.sheets) if s.by or not submitted]
        index = data.draw(st.sampled_from(sheets))
        return self.clerk.sheets[index], self.ids[index]

    @precondition(lambda self: self.clerk.sheets)
    @rule(person=persons, data=st.data())
    def submit(self, person: str, data: st.DataObject) -> None:
        sheet, document_id = self.chosen(data)
        command = Submit(self.request(person), document_id)
        expected = self.clerk.submit(sheet, person)
        self.answer(lambda: self.world.office.documents.submit(command), expected)

    @precondition(lambda self: any(sheet.by for sheet in self.clerk.sheets))
    @rule(person=persons, approves=st.sampled_from([True, True, True, False]), data=st.data())
    def judge(self, person: str, approves: bool, data: st.DataObject) -> None:
        sheet, document_id = self.chosen(data, submitted=True)
        request = self.request(person)
        expected = self.clerk.judge(sheet, person, approves=approves)

        async def asked() -> None:
            paper = await self.world.office.documents.paper(document_id)
            approvals = self.world.office.approvals
            if approves:
                await approvals.approve(Approve(request, paper.approval_id, "seen"))
            else:
                await approvals.decline(Decline(request, paper.approval_id, "not today"))

        self.answer(asked, expected)

    @precondition(lambda self: self.clerk.sheets)
    @rule(person=persons, data=st.data())
    def withdraw(self, person: str, data: st.DataObject) -> None:
        sheet, document_id = self.chosen(data)
        command = Withdraw(self.request(person), document_id, "typed wrong")
        expected = self.clerk.withdraw(sheet)
        self.answer(lambda: self.world.office.documents.withdraw(command), expected)

    @rule(hours=st.sampled_from([1, 1, 23, 24, 80]))
    def time_passes(self, hours: int) -> None:
        self.clerk.tick(hours)
        self.world.clock.at_ms = self.clerk.now_ms

    @rule(dies_at=st.integers(0, 5))
    def die_soon(self, dies_at: int) -> None:
        self.store.arm(dies_at)

    @invariant()
    def all_are_where_the_list_has_them(self) -> None:
        async def found() -> list[str]:
            documents = self.world.office.documents
            papers = [await documents.paper(document_id) for document_id in self.ids]
            return [paper.life.state for paper in papers]

        async def listed() -> dict[str, list[str]]:
            pages = {
                state: await self.world.office.documents.page(
                    filters.Match("state", "=", state.value), 0, len(self.ids) + 1
                )
                for state in State
            }
            return {s: [p.document.document_id for p in page] for s, (page, _) in pages.items()}

        async def versions(kind: Kind) -> list[str]:
            listed = await self.world.office.documents.versions(kind, TARGETS[kind])
            return [state for _, state in listed]

        if self.ids or self.asked:
            states = [self.clerk.state(sheet) for sheet in self.clerk.sheets]
            assert self.run(found()) == states
            assert self.run(listed()) == {
                state: [id_ for id_, where in zip(self.ids, states, strict=True) if where == state]
                for state in State
            }
            for kind, planned in self.clerk.versions.items():
                wanted = [self.clerk.where(kind, index) for index in range(len(planned))]
                assert self.run(versions(kind)) == wanted

    @invariant()
    def what_two_persons_must_let_happen_two_did(self) -> None:
        if self.clerk.alone or not self.ids:
            return

        async def published() -> list[Event]:
            listed = [await self.world.office.documents.versions(k, TARGETS[k]) for k in Kind]
            return [version.content for found in listed for version, _ in found[1:]]

        for event in self.run(published()):
            assert event.origin.approved_by
            assert event.origin.approved_by != event.origin.who


Documents.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
TestDocuments = Documents.TestCase
