"""The counter: what a request of a person on paper is to the office, and what that answers."""

from dataclasses import replace
from typing import Any

from services.common.kernel.errors import InvalidInput, Retriable
from services.vending.application.closings import Look
from services.vending.application.drafting import Draft
from services.vending.application.office import Office
from services.vending.domain.batch import Kind, Terms
from services.vending.domain.batching import CancelBatch, PauseBatch, ResumeBatch, SubmitBatch
from services.vending.domain.changes import ChangeTenant, ChangeTerms
from services.vending.domain.closing import HOUR_MS
from services.vending.domain.closings import CancelClosing, CloseAccount, CloseMeters, GiveRegister
from services.vending.domain.corrections import (
    AdjustCredit,
    RefundCredit,
    ReverseSale,
    TransferCredit,
    WriteOff,
)
from services.vending.domain.document import State, Submit
from services.vending.domain.events.closings import AccountCloseRefused
from services.vending.domain.lending import GrantEmergencyCredit, SetDebt
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.opening import Cancel, FirstSale, Plan, PlannedMeter
from services.vending.domain.payment import CancelSale, ConfirmSale, ReserveSale
from services.vending.domain.sale import Sell
from services.vending.domain.settling import SettleAccount
from tests.property.vending_paper import (
    AS_CHARGED,
    BATCHES,
    CLOSINGS,
    DOCUMENTS,
    ROUNDING,
    SHARE_PPM,
    Ask,
)
from tests.unit import test_vending_documents
from tests.unit.vending_world import World

WHY = "why not"
KINDS = {
    "batch sale": Kind.SALE,
    "batch adjust": Kind.ADJUSTMENT,
    "batch terms": Kind.POLICY,
    "batch off": Kind.FORCE_OFF,
    "batch on": Kind.FORCE_ON,
    "batch prepaid": Kind.RESTORE_PREPAID,
    "batch export": Kind.EXPORT,
}
HOLDING: dict[str, Any] = {"pause": PauseBatch, "resume": ResumeBatch, "cancel batch": CancelBatch}


async def answered(world: World, ask: Ask, batch_id: str = "") -> str:
    """Ask, and return "done", why not, or what a closing waits for. `batch_id`: of a move."""
    try:
        return await _answered(world, ask, batch_id) or "done"
    except InvalidInput as refused:
        return refused.reason.value
    except Retriable:
        return "UNAVAILABLE"


async def _answered(world: World, ask: Ask, batch_id: str) -> str | None:
    ask_of = replace(ask.request, at_ms=world.clock.at_ms)
    if ask.what in CLOSINGS:
        return _step(await world.office.closings.begin_and_look(_closing(ask, ask_of)))
    if ask.what in DOCUMENTS:
        return await _document(world.office, ask, ask_of)
    if ask.what in BATCHES:
        await world.office.batches.create(_draft(ask, ask_of))
        submission = replace(ask.submission, at_ms=world.clock.at_ms)
        await world.office.batches.submit(SubmitBatch(submission, ask.batch_id))
    elif ask.what in HOLDING:
        await world.office.batches.move(HOLDING[ask.what](ask_of, batch_id, WHY))
    else:
        await (
            _of_money(world.office, ask, ask_of)
            or _of_meter(world.office, ask, ask_of)
            or _of_life(world.office, ask, ask_of)
        )
    return None


def _of_money(office: Office, ask: Ask, request: Any) -> Any:  # noqa: C901 - one a case
    name, amount, about = ask.account, ask.amount, ask.about
    match ask.what:
        case "sell":
            return office.sell(Sell(request, name, amount, "cash"))
        case "sell energy":
            return office.sell(Sell(request, name, 0, "cash", amount))
        case "grant":
            return office.approvals.ask(GrantEmergencyCredit(request, name))
        case "owe":
            return office.set_debt(SetDebt(request, name, amount, SHARE_PPM, WHY))
        case "reverse":
            return office.correct(ReverseSale(request, name, about, WHY))
        case "adjust":
            return office.correct(AdjustCredit(request, name, amount, WHY))
        case "refund":
            return office.refund(RefundCredit(request, name, amount, "cash", WHY), 0.0)
        case "transfer":
            return office.transfer(TransferCredit(request, name, about, amount, WHY), 0.0)
        case "write-off":
            return office.correct(WriteOff(request, name, about, amount, WHY))
        case "reserve":
            return office.payments.reserve(ReserveSale(request, about, name, amount, "cash", 0))
        case "confirm":
            return office.payments.confirm(ConfirmSale(request, about))
        case "cancel":
            return office.payments.cancel(CancelSale(request, about, WHY))
    return None


def _of_meter(office: Office, ask: Ask, request: Any) -> Any:
    meter_id = ask.account
    register_milli = None if ask.register_milli == AS_CHARGED else ask.register_milli
    match ask.what:
        case "assign" | "move":
            *was, to = ask.about.split()
            return office.assign_meter(request, meter_id, to, register_milli, "".join(was))
        case "release":
            return office.release_meter(request, meter_id, register_milli)
        case "replace":
            return office.replace_meter(
                request,
                meter_id=meter_id,
                closing_register_milli=ask.register_milli,
                opening_register_milli=ask.amount,
                serial=ask.about,
                unit=None,
                profile=None,
                ratio=None,
                max_power_w=None,
                reason=WHY,
            )
        case "off" | "on" | "prepaid":
            return office.order(ForceRelay(request, meter_id, ask.what, WHY))
    return None


def _of_life(office: Office, ask: Ask, request: Any) -> Any:
    name, amount, about = ask.account, ask.amount, ask.about
    sale = FirstSale(amount, "cash" if amount else "")
    match ask.what:
        case "move in":
            tenant, with_owed = f"tenant-{ask.number}", about == "owed too"
            return office.change(ChangeTenant(request, name, tenant, with_owed, WHY))
        case "terms":
            tariff_id, policy_id = (about, None) if about[0] == "T" else (None, about)
            return office.change(ChangeTerms(request, name, tariff_id, policy_id, WHY))
        case "open" | "prepare":
            meters = (PlannedMeter(about, ask.register_milli),) if about else ()
            plan = Plan(name, "S1", None, "electricity", "T1", "P1", meters)
            return office.openings.prepare(request, plan, sale if ask.what == "open" else None)
        case "start":
            return office.openings.start(request, name, None, sale)
        case "drop":
            return office.openings.cancel(Cancel(request, name, WHY))
        case "give":
            closing_id, meter_id = about.split()
            more = (closing_id, meter_id, ask.register_milli, "manual", WHY)
            return office.closings.give(GiveRegister(request, name, *more))
        case "settle":
            return office.closings.settle(SettleAccount(request, name, about, amount))
        case "cancel closing":
            return office.closings.cancel(CancelClosing(request, name, about, WHY))
    raise AssertionError(ask)


def _closing(ask: Ask, request: Any) -> CloseAccount | CloseMeters:
    """Return a closing that cuts, if `amount` says so."""
    if ask.what == "close part":
        return CloseMeters(request, ask.account, (ask.about,), not ask.amount, HOUR_MS, WHY)
    why = WHY if ask.about else ""
    return CloseAccount(request, ask.account, ask.about, not ask.amount, HOUR_MS, why)


def _step(look: Look) -> str:
    """Return what a closing waits for or, where it is over, why it did not come to its end."""
    refused = [e.reason for e in look.events if isinstance(e, AccountCloseRefused)]
    return look.step or "".join(refused)


async def _document(office: Office, ask: Ask, request: Any) -> str | None:
    """Draft and submit at once."""
    publication: Any
    if ask.what == "tariff":
        publication = test_vending_documents.tariff(
            request,
            tariff_id=ask.account,
            price_micro=int(ask.about),
            effective_at_ms=ask.amount,
        )
    else:
        publication = test_vending_documents.policy(
            request,
            policy_id=ask.account,
            effective_at_ms=ask.amount,
            **said_of_policy(ask.account, ask.about),
        )
    paper = await office.documents.draft(request, publication, "")
    submission = replace(ask.submission, at_ms=request.at_ms)
    paper = await office.documents.submit(Submit(submission, paper.document.document_id))
    return "APPROVAL_REQUIRED" if paper.life.state is State.SUBMITTED else None


def said_of_policy(policy_id: str, said: str) -> dict[str, Any]:
    fee_ppm, fee_minor, emergency_minor = map(int, said.split("/"))
    return {
        "fee_ppm": fee_ppm,
        "fee_minor": fee_minor,
        "emergency_minor": emergency_minor,
        "rounding": ROUNDING[policy_id],
    }


def _draft(ask: Ask, request: Any) -> Draft:
    kind = KINDS[ask.what]
    method = "cash" if kind is Kind.SALE else None
    policy_id = "P2" if kind is Kind.POLICY else None
    time_ms = (1, 2) if kind is Kind.EXPORT else ()
    terms = Terms(kind, WHY, method, None, policy_id, *time_ms)
    listed = tuple((name, None) for name in ask.about.split())
    return Draft(request, terms, "", listed, ask.amount or None)
