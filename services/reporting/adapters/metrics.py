"""What reporting measures."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_DELAYS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class Metrics:
    """The metrics, registered where /metrics shows them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all."""
        self.lag = Gauge(
            "wattvend_reporting_lag_records",
            "Records in the log that are not in the tables, by topic",
            ["topic"],
            registry=registry,
        )
        self.rows = Counter(
            "wattvend_reporting_written_rows",
            "Rows written (repeats that changed nothing included), by table",
            ["table"],
            registry=registry,
        )
        self.records = Counter(
            "wattvend_reporting_read_records", "Records read and committed", registry=registry
        )
        self.skipped = Counter(
            "wattvend_reporting_skipped_records",
            "Records an operator chose to step over",
            registry=registry,
        )
        self.commit = Histogram(
            "wattvend_reporting_commit_seconds",
            "How long a transaction took",
            buckets=_DELAYS_S,
            registry=registry,
        )
        self.delay = Histogram(
            "wattvend_reporting_visible_delay_seconds",
            "From the newest record's timestamp to its commit, a batch",
            buckets=_DELAYS_S,
            registry=registry,
        )
        self.restarts = Counter(
            "wattvend_reporting_restarts_total",
            "Times the projection started again from the stored positions",
            registry=registry,
        )
        self.exported = Counter(
            "wattvend_reporting_exported_rows",
            "Rows written into exports of readings",
            registry=registry,
        )
        self.exports_kept = Gauge(
            "wattvend_reporting_exports_kept_bytes",
            "Bytes of exports that are kept, compressed as they are",
            registry=registry,
        )
