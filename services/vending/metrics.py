"""What vending measures."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SALE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The metrics, registered where /metrics shows them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all."""
        self.appended = Counter(
            "wattvend_vending_appended_events_total",
            "events appended to the store",
            ["type"],
            registry=registry,
        )
        self.appends = Counter(
            "wattvend_vending_appends_total",
            "appends by their result",
            ["result"],
            registry=registry,
        )
        self.sale = Histogram(
            "wattvend_vending_sale_seconds",
            "a sale, from the call to its durable answer",
            buckets=SALE_BUCKETS_S,
            registry=registry,
        )
        self.relay_lag = Gauge(
            "wattvend_vending_relay_lag_events",
            "events stored and not yet acknowledged on every topic",
            registry=registry,
        )
        self.relay_position = Gauge(
            "wattvend_vending_relay_position",
            "position up to which every event is acknowledged on every topic",
            registry=registry,
        )
        self.usage_statements = Counter(
            "wattvend_vending_usage_statements_total",
            "answers of metering to what an account was charged, by result",
            ["result"],
            registry=registry,
        )
        self.usage_asks_waiting = Gauge(
            "wattvend_vending_usage_asks_waiting_count",
            "asks what an account was charged that metering has not answered yet",
            registry=registry,
        )
        self.closings_open = Gauge(
            "wattvend_vending_closings_open_count",
            "closings under way",
            registry=registry,
        )
        self.closings_overdue = Gauge(
            "wattvend_vending_closings_overdue_count",
            "closings under way whose deadlines have passed: they wait for a person",
            registry=registry,
        )
        self.closings_oldest = Gauge(
            "wattvend_vending_closings_oldest_seconds",
            "how long ago the oldest closing under way began; 0: there is none",
            registry=registry,
        )
        self.batches_running = Gauge(
            "wattvend_vending_batches_running_count",
            "batches that are carried out",
            registry=registry,
        )
        self.batches_paused = Gauge(
            "wattvend_vending_batches_paused_count",
            "batches that a person paused, and nobody resumed or cancelled yet",
            registry=registry,
        )
        self.batches_oldest = Gauge(
            "wattvend_vending_batches_oldest_seconds",
            "how long ago the oldest batch that runs or is paused was submitted; 0: there is none",
            registry=registry,
        )
        self.batches_stand = Gauge(
            "wattvend_vending_batches_stand_seconds",
            "how long ago the running batch that stands for longest last moved; 0: none runs",
            registry=registry,
        )
        self.batch_targets_paced = Gauge(
            "wattvend_vending_batch_targets_paced_count",
            "targets of running batches that wait for the budget of their site",
            registry=registry,
        )
        self.approvals_waiting = Gauge(
            "wattvend_vending_approvals_waiting_count",
            "proposals, submitted documents among them, that wait for a second person",
            registry=registry,
        )
        self.policies_scheduled = Gauge(
            "wattvend_vending_policies_scheduled_count",
            "published versions of policies that do not apply yet",
            registry=registry,
        )
        self.policies_late = Gauge(
            "wattvend_vending_policies_late_seconds",
            "for how long the first of them should have applied; 0: none should",
            registry=registry,
        )
        self.stuck = Gauge(
            "wattvend_vending_stuck_count",
            "processes whose next step fails and is tried again, by process",
            ["process"],
            registry=registry,
        )
        self.stuck_oldest = Gauge(
            "wattvend_vending_stuck_oldest_seconds",
            "for how long the oldest of them has failed",
            ["process"],
            registry=registry,
        )
        self.half_done = Gauge(
            "wattvend_vending_assignments_half_done_count",
            "assignments decided in the meter's stream and not yet in the account's",
            registry=registry,
        )
