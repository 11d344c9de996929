"""Documents: versions of tariffs and policies, from the draft until they are in force.

A draft is submitted by asking for its publication, by a request that derives from it: done at once
where one person may, else a proposal, which another person approves. So there is one append a step,
and what dies in between goes on with the approvals, or when it is submitted again. What a draft
replaces is withdrawn before it: whatever dies then, nobody approves what its drafter found wrong. A
policy's version that is to apply later waits in the policy's stream, and is brought into force here
when its instant comes.
"""

import asyncio
from dataclasses import replace

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput
from services.common.kernel.filters import Filter
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime import points
from services.vending.application.approvals import Approvals
from services.vending.application.book import Book, Outcome
from services.vending.application.process import each, step
from services.vending.domain import approval, checks, document, policy
from services.vending.domain.approval import Decline, Proposal, approval_id_of
from services.vending.domain.decisions import Rejection, Request
from services.vending.domain.document import (
    Document,
    Draft,
    Kind,
    Life,
    State,
    Submit,
    Version,
    Withdraw,
    document_not_found,
    life_of,
    published,
    state_of,
    versions_of_policy,
    versions_of_tariff,
)
from services.vending.domain.events.prices import PolicyPublished, PolicyScheduled, TariffPublished
from services.vending.domain.origin import NOBODY, Origin
from services.vending.domain.policy import BringIntoForce, Policy, PublishPolicy
from services.vending.domain.tables import Tables
from services.vending.domain.tariff import PublishTariff, Tariff

IS_OVER = (Reason.DOCUMENT_DECIDED, Reason.APPROVAL_DECIDED, Reason.APPROVAL_EXPIRED)
"""Why a document is not withdrawn that another replaces: there is nothing left of it to do."""


@value_class
class Paper:
    """A document as it is now. `approval_id`: of its submission, "": it needed or had none."""

    document: Document
    life: Life
    approval_id: str


class Documents:
    """Drafts of tariffs and policies, and what becomes of them."""

    def __init__(
        self, book: Book, tables: Tables, clock: Clock, approvals: Approvals, lead_ms: int
    ) -> None:
        """Use `book`; `lead_ms`: how far ahead a later version of a tariff must lie."""
        self._book = book
        self._tables = tables
        self._clock = clock
        self._approvals = approvals
        self._lead_ms = lead_ms
        self._moving = asyncio.Lock()

    async def draft(
        self, request: Request, publication: PublishTariff | PublishPolicy, replaces: str
    ) -> Paper:
        """Let a draft exist. Raises InvalidInput for whatever publishing would refuse.

        A draft that it replaces, or the proposal that came of that, is withdrawn before.
        """
        if replaces:
            checks.check_uuid("replaces", replaces)
        kind, target_id = document.named(publication)
        replaced = await self._book.state_of(Document, replaces) if replaces else None
        target = await self._target(kind, target_id)
        command = Draft(request, publication, replaces, target, self._lead_ms, replaced)
        document_id = document.document_id_of(request)
        known = await self._book.state_of(Document, document_id)
        if replaced and not isinstance(document.decide(known, command), Rejection):
            await self._let_go(replaced, document_id, approval.behind(request))
            points.point("let-go")
        return await self._shown((await self._submit(document_id, command)).state)

    async def _let_go(self, replaced: Document, by_document: str, by: Origin) -> None:
        """Withdraw what a draft replaces, where that may still be done."""
        if (await self._shown(replaced)).life.version is not None:
            return  # its version stands until the new one takes its place
        request = step(self._clock.now_ms(), (), by, "replaced", replaced.document_id, by_document)
        reason = f"replaced by document {by_document}"
        try:
            await self.withdraw(Withdraw(request, replaced.document_id, reason))
        except InvalidInput as decided:
            if decided.reason not in IS_OVER:
                raise

    async def submit(self, command: Submit) -> Paper:
        """Ask for the publication of a draft; done at once where one person may.

        Raises InvalidInput where it is refused: it stays a draft, or what it had become.
        """
        async with self._moving:
            await self._submit(command.document_id, command)
            points.point("submitted")
            state = await self._document(command.document_id)
            if state.withdrawn_by is not None:  # since, where this is a repeat
                raise document.withdrawn(state).as_error()
            by = approval.behind(command.request)
            try:
                await self._approvals.ask(
                    published(state, self._publishing(state, by), self._lead_ms)
                )
            except InvalidInput as refused:
                if refused.reason is not Reason.APPROVAL_REQUIRED:
                    raise
            return await self._shown(state)

    async def withdraw(self, command: Withdraw) -> Paper:
        """Let a draft not be submitted, decline what became of it, or let its version not begin.

        Raises InvalidInput: APPROVAL_REQUIRED where others have to let a version not begin; the
        same request, when they have, withdraws the document.
        """
        async with self._moving:
            state = await self._document(command.document_id)
            paper = await self._shown(state)
            if paper.life.version is not None:
                state = await self._take_back(state, paper.life.version, command)
            elif paper.approval_id:
                declined = Decline(command.request, paper.approval_id, command.reason)
                await self._approvals.decline(declined)
            else:
                state = (await self._submit(command.document_id, command)).state
            return await self._shown(state)

    async def _take_back(self, state: Document, version: Version, command: Withdraw) -> Document:
        """Publish, by the instant of a version that has not begun, what would apply without it."""
        request = command.request
        kind, document_id = Kind(state.kind), state.document_id
        said = (command.reason, *request.key)
        origin = request.origin
        ending = step(request.at_ms, said, origin, "taken-back", document_id, *request.key)
        if state.withdrawn_by is not None:
            if state.answers.get(ending.key) is not None:
                return state
            raise document.withdrawn(state).as_error()
        versions = await self._versions(kind, state.target_id)
        not_now = document.why_not_taken_back(version, versions)
        if not_now and not await self._is_asked(kind, state.target_id, request):
            raise not_now.as_error()
        instead = document.instead(
            version, document.before(version, versions), state.legal_entity, request, self._lead_ms
        )
        await self._approvals.ask(instead)
        points.point("taken-back")
        return (await self._submit(document_id, replace(command, request=ending))).state

    async def _is_asked(self, kind: Kind, target_id: str, request: Request) -> bool:
        """Say whether a request has changed a tariff or policy, or waits for others to let it."""
        target = await self._target(kind, target_id)
        proposal = await self._book.state_of(Proposal, approval_id_of(request))
        is_done = target is not None and target.answers.get(request.key) is not None
        return is_done or proposal is not None

    async def paper(self, document_id: str) -> Paper:
        """Return a document. Raises InvalidInput(DOCUMENT_NOT_FOUND)."""
        return await self._shown(await self._document(document_id))

    async def page(self, wanted: Filter, after: int, limit: int) -> tuple[list[Paper], int | None]:
        """Return documents of which a filter holds, oldest first, and where to go on if more do.

        `after`: 0, or where the page before ended; the filter's fields: see Tables.documents. Only
        the streams of what the page shows are read.
        """
        now_ms = self._clock.now_ms()
        rows = await self._tables.documents(wanted, now_ms, after, limit + 1)
        last = rows[limit - 1][0] if len(rows) > limit else None
        return [await self.paper(document_id) for _, document_id in rows[:limit]], last

    async def versions(self, kind: Kind, target_id: str) -> list[tuple[Version, State]]:
        """Return the versions of a tariff or policy, oldest first, and where each is in its life.

        Raises InvalidInput where there is none.
        """
        checks.check_id(f"{kind}_id", target_id)
        versions = await self._versions(kind, target_id)
        if not versions:
            reason = Reason.TARIFF_NOT_FOUND if kind is Kind.TARIFF else Reason.POLICY_NOT_FOUND
            text = f"there is no {kind} {target_id!r}; publish it first"
            raise InvalidInput(reason, text, field=f"{kind}_id")
        return [(version, state_of(version, versions)) for version in versions]

    async def complete(self) -> int:
        """Bring into force what is scheduled and due; return how many versions."""
        due = await self._tables.scheduled_until(self._clock.now_ms())
        versions = {f"{policy_id}/{version}": (policy_id, version) for policy_id, version in due}

        async def begin(name: str) -> None:
            policy_id, version = versions[name]
            state = await self._book.state_of(Policy, policy_id)
            waiting = state.scheduled if state else ()
            behind = [approval.behind(each) for each in waiting if each.version == version]
            points.point("due")
            request = step(
                self._clock.now_ms(), (), behind[0] if behind else NOBODY, "begin", *versions[name]
            )
            command = BringIntoForce(request, policy_id, version)
            await self._book.submit(Policy, policy_id, lambda now: policy.decide(now, command))

        return await each(self._book.failing, "scheduled", versions, begin)

    def _publishing(self, state: Document, by: Origin) -> Request:
        """Return the request that publishes a document: the same, whoever asks for it again."""
        content = (state.content, state.base_version)
        return step(self._clock.now_ms(), content, by, "publish", state.document_id)

    async def _shown(self, state: Document) -> Paper:
        approval_id = approval_id_of(self._publishing(state, NOBODY))
        proposal = await self._book.state_of(Proposal, approval_id)
        versions = await self._versions(Kind(state.kind), state.target_id)
        life = life_of(state, proposal, versions, self._clock.now_ms())
        return Paper(state, life, approval_id if proposal else "")

    async def _target(self, kind: Kind, target_id: str) -> Tariff | Policy | None:
        if kind is Kind.TARIFF:
            return await self._book.state_of(Tariff, target_id)
        return await self._book.state_of(Policy, target_id)

    async def _versions(self, kind: Kind, target_id: str) -> list[Version]:
        if kind is Kind.TARIFF:
            events = await self._book.events_of(Tariff, target_id, TariffPublished)
            return versions_of_tariff(events, self._clock.now_ms())
        scheduled = await self._book.events_of(Policy, target_id, PolicyScheduled)
        begun = await self._book.events_of(Policy, target_id, PolicyPublished)
        return versions_of_policy(scheduled, begun)

    async def _document(self, document_id: str) -> Document:
        checks.check_uuid("document_id", document_id)
        found = await self._book.state_of(Document, document_id)
        if found is None:
            raise document_not_found(document_id).as_error()
        return found

    async def _submit(self, document_id: str, command: document.Command) -> Outcome[Document]:
        return await self._book.submit(
            Document, document_id, lambda state: document.decide(state, command)
        )
