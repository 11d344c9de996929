"""Control's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.control.domain.desk import Desk
from services.control.domain.messages import Action, Outcome, Result

CONFIRM_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60, 300, 3600)


class Metrics:
    """What operators watch: what waits, what was told, what the brakes let through."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting = Gauge(
            "wattvend_control_intents_waiting_count",
            "intents neither confirmed nor over",
            registry=registry,
        )
        self._outcomes = Counter(
            "wattvend_control_outcomes_total",
            "steps of delivery told",
            ["result"],
            registry=registry,
        )
        self._cuts = Gauge(
            "wattvend_control_cuts_last_minute_count",
            "cuts sent within the last minute: the used part of the site's budget",
            ["site"],
            registry=registry,
        )
        self._confirm = Histogram(
            "wattvend_control_intent_to_confirmed_seconds",
            "from the decision of an intent that was commanded to its read-back",
            ["wanted"],
            buckets=CONFIRM_BUCKETS_S,
            registry=registry,
        )
        self._undecodable = Counter(
            "wattvend_control_undecodable_records_total",
            "records that could not be decoded and were skipped",
            ["topic"],
            registry=registry,
        )
        self._bootstrap = Counter(
            "wattvend_control_partitions_read_total",
            "partitions that were read to their end before acting",
            registry=registry,
        )
        for result in Result:
            self._outcomes.labels(result.value)

    def told(self, action: Action) -> None:
        """Count an action that was done."""
        if not isinstance(action, Outcome):
            return
        self._outcomes.labels(action.result.value).inc()
        # Attempt 0 needed no command: it tells the pace of reads, or that of restarts.
        if action.result is Result.CONFIRMED and action.is_first and action.attempt:
            took_ms = max(0, action.decided_at_ms - action.intent.decided_at_ms)
            self._confirm.labels(action.intent.wanted).observe(took_ms / 1000)

    def undecodable(self, topic: str) -> None:
        """Count a record that was skipped."""
        self._undecodable.labels(topic).inc()

    def partitions_read(self, count: int) -> None:
        """Count partitions that are acted for from now on."""
        self._bootstrap.inc(count)

    def watch(self, desk: Desk, now_ms: int) -> None:
        """Take the gauges from the desk."""
        self._waiting.set(desk.waiting_count())
        for site_id, used in desk.cuts_used(now_ms).items():
            self._cuts.labels(site_id).set(used)
