"""Rule 6: may arrears cut an account now, and why not? A pure function of plain values.

Asked of an account that is in arrears, or cut, by the charge of a reading; nothing else cuts.
"""

from collections.abc import Iterator

from services.common.kernel.values import named_value_class, value_class
from services.common.policies.rules import Notice, Rules

CLOCKS_APART_MS_MAX = 120_000
"""What a pushed reading may be older besides: its device's clock is not ours."""
THRESHOLD_REACHED = "threshold-reached"
NOTICE_PENDING = "notice-pending"
"""A notice goes out now."""
KEPT = ("keep-power", "promised", "forced")
"""Orders that hold relays whatever is owed: a notice that went out is void."""
REFUSALS = (
    "",
    *KEPT,
    "evidence-old",
    "evidence-quality",
    NOTICE_PENDING,
    "notice-running",
    "notice-failed",
    "grace",
    "no-cut-window",
    "evidence-silent",
    "evidence-backfill",
)
"""Why an account is not cut, by the number that its row keeps of the one told last; 0: none was."""


@named_value_class
class Grounds:
    """What a decision to cut rests on; times in ms UTC, None: there is no such.

    `received_at_ms` and `quality`: of the reading that was charged; `pushed_from_ms`: when its
    device took it, None: we read it ourselves. `was_silent`: its meter was, until it came.
    `arrears_since_ms`: since then no more is available than the floor. `is_forced`:
    a person's order holds every relay of the account. `is_no_cut`: now lies in a window of the
    rules. `notice_at_ms`: a notice of the cut went out; `notice_outcome`: what became of it,
    delivered or failed.
    """

    now_ms: int
    received_at_ms: int
    quality: str
    max_evidence_age_ms: int
    arrears_since_ms: int
    pushed_from_ms: int | None = None
    was_silent: bool = False
    keep_power_until_ms: int | None = None
    promise_until_ms: int | None = None
    is_forced: bool = False
    is_no_cut: bool = False
    notice_at_ms: int | None = None
    notice_outcome: str | None = None


@value_class
class Verdict:
    """Whether to cut, and the reason for it or against it."""

    cut: bool
    reason: str


def verdict(rules: Rules, grounds: Grounds) -> Verdict:
    """Return whether arrears may cut, with the reason for yes or the first one for no."""
    refusal = next(_refusals(rules, grounds), None)
    return Verdict(refusal is None, refusal or THRESHOLD_REACHED)


def kept_by(
    now_ms: int, keep_power_until_ms: int | None, promise_until_ms: int | None
) -> str | None:
    """Return which order keeps an account on power whatever it owes, or None."""
    if keep_power_until_ms is not None and now_ms < keep_power_until_ms:
        return "keep-power"
    if promise_until_ms is not None and now_ms < promise_until_ms:
        return "promised"
    return None


def _refusals(rules: Rules, grounds: Grounds) -> Iterator[str]:
    now_ms = grounds.now_ms
    if kept := kept_by(now_ms, grounds.keep_power_until_ms, grounds.promise_until_ms):
        yield kept
    if grounds.is_forced:
        yield "forced"
    yield from _evidence_refusals(rules, grounds)
    if rules.notice is not None:
        yield from _notice_refusals(rules.notice, grounds)
    if now_ms < grounds.arrears_since_ms + rules.grace_ms:
        yield "grace"
    if grounds.is_no_cut:
        yield "no-cut-window"


def _evidence_refusals(rules: Rules, grounds: Grounds) -> Iterator[str]:
    if grounds.now_ms - grounds.received_at_ms > grounds.max_evidence_age_ms:
        yield "evidence-old"
    if grounds.pushed_from_ms is not None:
        waited_ms = grounds.received_at_ms - grounds.pushed_from_ms
        if waited_ms > grounds.max_evidence_age_ms + CLOCKS_APART_MS_MAX:
            yield "evidence-backfill"
    if grounds.was_silent:
        yield "evidence-silent"
    if grounds.quality not in rules.qualities:
        yield "evidence-quality"


def _notice_refusals(notice: Notice, grounds: Grounds) -> Iterator[str]:
    if grounds.notice_at_ms is None:
        yield NOTICE_PENDING
    elif grounds.now_ms < grounds.notice_at_ms + notice.lead_ms:
        yield "notice-running"
    elif notice.required and grounds.notice_outcome != "delivered":
        yield "notice-failed"
