"""What metering counts, on the runtime's registry."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CHARGE_LATENCY_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)


class Metrics:
    """Prometheus metrics of one worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.outcomes = Counter(
            "wattvend_metering_outcomes",
            "What became of readings and facts, by outcome (README, rules 2 and 3)",
            ["outcome"],
            registry=registry,
        )
        self.records = Counter(
            "wattvend_metering_records",
            "Records of the shard log absorbed, by subject",
            ["subject"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "wattvend_metering_dead_letters",
            "Reading frames that could not be decoded",
            registry=registry,
        )
        self.rows = Counter(
            "wattvend_metering_rows_written",
            "Rows the changelog has acknowledged, by kind (fact, account, header)",
            ["kind"],
            registry=registry,
        )
        self.charge_latency = Histogram(
            "wattvend_metering_charge_latency_seconds",
            "From the receipt of a frame's oldest reading to the acknowledgement of its charges",
            buckets=CHARGE_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.accounts = Gauge(
            "wattvend_metering_accounts", "Accounts of this worker's shards", registry=registry
        )
        self.meters = Gauge(
            "wattvend_metering_meters", "Meters of this worker's shards", registry=registry
        )
        self.shard_lag = Gauge(
            "wattvend_metering_shard_lag_records",
            "Records of the shard log that are not yet durably absorbed",
            ["shard"],
            registry=registry,
        )
        self.pending = Gauge(
            "wattvend_metering_pending_records",
            "Records absorbed and not yet durable",
            ["shard"],
            registry=registry,
        )

    def count(self, subject: str, counts: Mapping[str, int]) -> None:
        """Count one absorbed record and what `absorb` counted in it."""
        self.records.labels(subject).inc()
        for outcome, number in counts.items():
            self.outcomes.labels(outcome).inc(number)

    def wrote(self, kind: str, number: int) -> None:
        """Count rows that are durable."""
        self.rows.labels(kind).inc(number)

    def forget_shards(self) -> None:
        """Forget the gauges of shards, when they are no longer this worker's."""
        self.shard_lag.clear()
        self.pending.clear()
