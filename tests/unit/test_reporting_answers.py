"""Goal: answers that a caller can rely on: pages, explanations, and why something was refused.

Method: the pure parts by themselves, the handlers on a fake of the queries.
"""

from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.reporting.adapters.api import ReportingServicer
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.log import rows_of
from services.reporting.config import ReportingSettings
from services.reporting.domain.explain import BookEvent, credits_of, intents_of_cut
from services.reporting.domain.rows import (
    AlarmRow,
    CommandOutcomeRow,
    PolicyVersionRow,
    RelayIntentRow,
)
from services.reporting.main import RebuildSettings
from tests.unit.reporting_records import (
    CUT_OFFSET,
    EVIDENCE_MS,
    LEASE_MS,
    T0,
    Sent,
    Story,
    record_of,
)
from wattvend.reporting.v1 import reporting_pb2 as pb

STORY = Story()
LISTED = ("alarms", "S1", "")


def row(sent: Sent, kind: Any) -> Any:
    return next(one for one in rows_of(record_of(sent, 0)) if isinstance(one, kind))


def wants_open(offset: int, attempt: int, result: str) -> CommandOutcomeRow:
    found = row(STORY.outcome(offset, "open", attempt, result), CommandOutcomeRow)
    assert isinstance(found, CommandOutcomeRow)
    return found


# --- pages ------------------------------------------------------------------------------------


@given(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_characters="\x00")))
def test_a_token_brings_back_its_cursor(number: int, text: str) -> None:
    token = token_of(LISTED, (number, text))
    if len(token) <= 1024:
        assert cursor_of(LISTED, token, (int, str)) == (number, text)


@given(st.text())
def test_any_other_token_is_refused_and_nothing_else_happens(token: str) -> None:
    if not token:
        assert cursor_of(LISTED, token, (int, str)) is None
        return
    with pytest.raises(InvalidInput) as refused:
        cursor_of(LISTED, token, (int, str))
    assert (refused.value.reason, refused.value.field) == (Reason.INVALID_ARGUMENT, "page_token")


@pytest.mark.parametrize(
    "token",
    [
        token_of(("alarms", "S2", ""), (1, "a")),
        token_of(LISTED, (1,)),
        token_of(LISTED, ("a", "a")),
        token_of(LISTED, (True, "a")),
        token_of(LISTED, (2**63, "a")),
        token_of(LISTED, (1, "\x00")),
        token_of(LISTED, (1, "a" * 2000)),
        "W10",
        "WzFd" * 300,
    ],
)
def test_a_token_of_another_list_or_of_odd_content_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput):
        cursor_of(LISTED, token, (int, str))


def test_a_page_has_a_default_size_and_a_largest_one() -> None:
    assert [page_size_of(size) for size in (0, 1, 1000)] == [100, 1, 1000]
    for size in (-1, 1001):
        with pytest.raises(InvalidInput, match=r"1\.\.1000"):
            page_size_of(size)


# --- explanations -----------------------------------------------------------------------------

CUT: AlarmRow = row(STORY.cut(), AlarmRow)
POLICY: PolicyVersionRow = row(STORY.book()[1], PolicyVersionRow)
LEASE_END_MS = min(T0 + CUT_OFFSET + LEASE_MS, T0 + 3_100 + EVIDENCE_MS)


def test_the_intent_of_a_cut_is_told_by_the_cut_even_before_control_did_anything() -> None:
    (intent,) = intents_of_cut(CUT, POLICY, [], [])
    assert (intent.meter_id, intent.epoch, intent.version_offset) == (STORY.meter, 2, CUT_OFFSET)
    assert (intent.cause, intent.mode, intent.decided_at_ms) == (
        "arrears",
        "prepaid",
        CUT.decided_at_ms,
    )
    assert (intent.send_before_ms, intent.steps) == (LEASE_END_MS, [])


def test_the_newest_intent_tells_itself_what_history_would_say_of_it() -> None:
    known = row(STORY.intent("open", CUT_OFFSET, "arrears"), RelayIntentRow)
    (told,) = intents_of_cut(CUT, POLICY, [], [known])
    (derived,) = intents_of_cut(CUT, POLICY, [], [])
    assert told == derived


def test_steps_stand_in_the_order_in_which_they_were_taken() -> None:
    steps = [
        wants_open(CUT_OFFSET, attempt, result)
        for attempt, result in ((2, "confirmed"), (1, "failed"), (2, "sent"), (1, "sent"))
    ]
    (intent,) = intents_of_cut(CUT, POLICY, steps, [])
    assert [(step.attempt, step.result) for step in intent.steps] == [
        (1, "sent"),
        (1, "failed"),
        (2, "sent"),
        (2, "confirmed"),
    ]


def test_a_renewed_lease_is_an_intent_of_its_own_with_its_own_end() -> None:
    renewed = wants_open(CUT_OFFSET + 3, 1, "confirmed")
    first, second = intents_of_cut(CUT, POLICY, [renewed], [])
    assert (first.cause, second.cause) == ("arrears", "lease-renewed")
    renewed_at_ms = T0 + CUT_OFFSET + 3
    assert second.decided_at_ms == renewed_at_ms
    assert second.send_before_ms == renewed_at_ms + LEASE_MS


def event(epoch: int, revision: int, credited_nano: int | None) -> BookEvent:
    return BookEvent("e", UUID(int=0), "", epoch, revision, credited_nano, T0)


def test_credit_is_told_by_differences_and_up_to_a_revision() -> None:
    events = [event(0, 3, 30), event(0, 1, 10), event(0, 0, None), event(0, 2, 10)]
    told = credits_of(events, (0, 3))
    assert [(one.added_nano, one.credited_nano) for one in told] == [(10, 10), (20, 30)]
    assert [one.event.revision for one in credits_of(events, (0, 2))] == [1]


def test_what_a_restored_book_has_forgotten_credits_nothing() -> None:
    """It was restored behind revision 1; the epoch before had gone on to 3."""
    events = [event(0, 1, 10), event(0, 2, 25), event(0, 3, 40), event(1, 2, None), event(1, 3, 12)]
    told = credits_of(events, (1, 3))
    assert [(one.added_nano, one.credited_nano) for one in told] == [(10, 10), (2, 12)]
    assert [one.credited_nano for one in credits_of(events, (0, 3))] == [10, 25, 40]


# --- handlers ---------------------------------------------------------------------------------


class FakeQueries:
    """Queries of an empty database that counts how often a balance was looked up."""

    def __init__(self) -> None:
        self.balances: dict[str, dict[str, Any]] = {}
        self.known: set[str] = set()
        self.looks = 0

    async def balance(self, account_id: str) -> dict[str, Any] | None:
        self.looks += 1
        return self.balances.get(account_id)

    async def account_is_known(self, account_id: str) -> bool:
        return account_id in self.known

    async def meter_is_known(self, meter_id: str) -> bool:
        return meter_id in self.known

    async def charge(self, _key: int, _epoch: int | None, _sequence: int | None) -> None:
        return None

    async def cut(self, _account_id: str, _alarm_id: UUID | None) -> None:
        return None


@pytest.fixture
def queries() -> FakeQueries:
    return FakeQueries()


@pytest.fixture
def servicer(queries: FakeQueries) -> ReportingServicer:
    return ReportingServicer(queries, Commits())  # type: ignore[arg-type] # a fake


async def refused(call: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as error:
        await call
    return error.value


def preview_of(**fields: Any) -> pb.PreviewTariffRequest:
    return pb.PreviewTariffRequest(**{"from_ms": 1, "to_ms": 2, **fields})


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetBalance", pb.GetBalanceRequest(), "name"),
        ("GetBalance", pb.GetBalanceRequest(name=names.BALANCE.name("a\x00b")), "name"),
        ("GetBalance", pb.GetBalanceRequest(name=names.BALANCE.name("x" * 500)), "name"),
        ("GetConsumption", pb.GetConsumptionRequest(from_ms=1, to_ms=2), "account"),
        (
            "GetConsumption",
            pb.GetConsumptionRequest(account="accounts/A", meter="meters/M", from_ms=1, to_ms=2),
            "account",
        ),
        (
            "GetConsumption",
            pb.GetConsumptionRequest(account="accounts/A", from_ms=2, to_ms=2),
            "from_ms",
        ),
        ("ListAlarms", pb.ListAlarmsRequest(page_size=-1), "page_size"),
        ("ListAlarms", pb.ListAlarmsRequest(page_token="zzz"), "page_token"),
        ("ListAlarms", pb.ListAlarmsRequest(filter="' or 1=1"), "filter"),
        (
            "ListAlarms",
            pb.ListAlarmsRequest(page_token=token_of(("alarms", ""), (1, "no uuid"))),
            "page_token",
        ),
        ("ListExceptions", pb.ListExceptionsRequest(filter="meter = ?"), "filter"),
        ("ListExceptions", pb.ListExceptionsRequest(page_token="zzz"), "page_token"),
        ("ListMeters", pb.ListMetersRequest(page_size=1001), "page_size"),
        ("ListLostMeters", pb.ListLostMetersRequest(page_token="!"), "page_token"),
        ("ExplainCutoff", pb.ExplainCutoffRequest(), "account"),
        ("ExplainCutoff", pb.ExplainCutoffRequest(alarm="alarms/7"), "alarm"),
        ("ExplainCharge", pb.ExplainChargeRequest(), "meter"),
        ("ExplainCharge", pb.ExplainChargeRequest(meter="meters/M", sequence=1), "sequence"),
        ("ExplainBalance", pb.ExplainBalanceRequest(), "account"),
        ("PreviewTariff", pb.PreviewTariffRequest(from_ms=1, to_ms=2), "plan"),
        ("PreviewTariff", preview_of(plan="{}", price_micro=1), "plan"),
        ("PreviewTariff", preview_of(plan="{}"), "plan"),
        ("PreviewTariff", preview_of(price_micro=-1), "price_micro"),
        ("PreviewTariff", preview_of(price_micro=1, to_ms=1), "from_ms"),
        ("PreviewTariff", preview_of(price_micro=1, to_ms=401 * 86_400_000), "from_ms"),
        ("PreviewTariff", preview_of(price_micro=1, from_ms=-1), "from_ms"),
        ("PreviewTariff", preview_of(price_micro=1, accounts=["?"]), "accounts"),
        ("PreviewTariff", preview_of(price_micro=1), "accounts"),
    ],
)
async def test_odd_requests_name_the_field_that_is_wrong(
    servicer: ReportingServicer, method: str, request_: Any, field: str
) -> None:
    error = await refused(getattr(servicer, method)(request_, None))
    assert (error.reason, error.field) == (Reason.INVALID_ARGUMENT, field)


async def test_what_does_not_exist_is_not_found(
    servicer: ReportingServicer, queries: FakeQueries
) -> None:
    calls = {
        Reason.ACCOUNT_NOT_FOUND: servicer.GetBalance(
            pb.GetBalanceRequest(name=names.BALANCE.name("A")), None
        ),
        Reason.METER_NOT_FOUND: servicer.GetConsumption(
            pb.GetConsumptionRequest(meter="meters/M", from_ms=1, to_ms=2), None
        ),
        Reason.NO_CUTOFF: servicer.ExplainCutoff(
            pb.ExplainCutoffRequest(alarm=names.ALARM.name(str(uuid4()))), None
        ),
    }
    for reason, call in calls.items():
        assert (await refused(call)).reason is reason
    queries.known |= {"A", "M"}
    charge = servicer.ExplainCharge(pb.ExplainChargeRequest(meter="meters/M"), None)
    assert (await refused(charge)).reason is Reason.CHARGE_NOT_FOUND
    never = servicer.ExplainCutoff(pb.ExplainCutoffRequest(account="accounts/A"), None)
    assert (await refused(never)).reason is Reason.NO_CUTOFF
    unpublished = servicer.GetBalance(pb.GetBalanceRequest(name=names.BALANCE.name("A")), None)
    assert (await refused(unpublished)).reason is Reason.NOT_YET_VISIBLE


async def test_a_commit_of_another_account_wakes_nobody() -> None:
    commits = Commits()
    with commits.watching("A") as woken:
        commits.tell(["B"])
        assert not woken.is_set()
        commits.tell(["A"])
        assert woken.is_set()
    commits.tell(["A"])
    assert commits._waiting == {}


# --- settings ---------------------------------------------------------------------------------

NEEDED = {
    "WATTVEND_REPORTING_INSTANCE": "reporting-0",
    "WATTVEND_REPORTING_HTTP_PORT": "0",
    "WATTVEND_REPORTING_GRPC_PORT": "0",
    "WATTVEND_REPORTING_POSTGRES_DSN": "postgresql://u:secret@127.0.0.1/d",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_records_to_step_over_are_named_one_by_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WATTVEND_REPORTING_SKIP", "ledger:3:71, shard-log.dlq:0:1")
    with pytest.raises(ValidationError, match="topic:partition:offset"):
        ReportingSettings()
    environment.setenv("WATTVEND_REPORTING_SKIP", "ledger:3:71, charges:0:9")
    assert ReportingSettings().skipped == {("ledger", 3, 71), ("charges", 0, 9)}


def test_the_password_of_the_database_is_never_shown(environment: pytest.MonkeyPatch) -> None:
    assert "secret" not in repr(ReportingSettings())
    environment.setenv("WATTVEND_REPORTING_POSTGRES_DSN", "host=x password=secret")
    with pytest.raises(ValidationError, match="postgresql://user"):
        ReportingSettings()


def test_a_rebuild_needs_only_to_know_where_log_and_tables_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "WATTVEND_REPORTING_POSTGRES_DSN"
    monkeypatch.setenv(name, NEEDED[name])
    assert RebuildSettings().postgres_schema == "reporting"
