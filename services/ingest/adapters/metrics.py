"""The metrics of ingest."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """Every counter, gauge and histogram that ingest keeps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.readings = Counter(
            "wattvend_ingest_readings_total",
            "Readings by protocol and outcome: taken, set-aside, dropped",
            ("protocol", "outcome"),
            registry=registry,
        )
        self.set_aside = Counter(
            "wattvend_ingest_set_aside_total",
            "What devices said that could not be used, by fault",
            ("protocol", "fault"),
            registry=registry,
        )
        self.unknown_devices = Gauge(
            "wattvend_ingest_unknown_devices", "Quarantined devices", registry=registry
        )
        self.frame_readings = Histogram(
            "wattvend_ingest_frame_readings",
            "Readings in an acknowledged frame",
            buckets=SIZES,
            registry=registry,
        )
        self.frame_seconds = Histogram(
            "wattvend_ingest_frame_acknowledgement_seconds",
            "From sending a frame to acks=all",
            buckets=SECONDS,
            registry=registry,
        )
        self.frame_retries = Counter(
            "wattvend_ingest_frame_retries_total", "Frames sent again", registry=registry
        )
        self.unacknowledged = Gauge(
            "wattvend_ingest_unacknowledged_readings",
            "Readings that wait for Kafka",
            registry=registry,
        )
        self.lines = Gauge("wattvend_ingest_lines_owned", "Lines owned", registry=registry)
        self.transactions = Counter(
            "wattvend_ingest_line_transactions_total",
            "Exchanges with polled devices",
            ("operation", "result"),
            registry=registry,
        )
        self.transaction_seconds = Histogram(
            "wattvend_ingest_line_transaction_seconds",
            "From writing a request to its answer, or to giving up",
            ("operation",),
            buckets=SECONDS,
            registry=registry,
        )
        self.clocks = Counter(
            "wattvend_ingest_clocks_tended_total",
            "Clocks of polled meters found wrong, by what came of setting them",
            ("result",),
            registry=registry,
        )
        self.replies = Counter(
            "wattvend_ingest_replies_total",
            "Device requests answered",
            ("operation", "result"),
            registry=registry,
        )
        self.mqtt_messages = Counter(
            "wattvend_ingest_mqtt_messages_total",
            "MQTT messages by kind",
            ("kind",),
            registry=registry,
        )
        self.mqtt_connected = Gauge(
            "wattvend_ingest_mqtt_connected", "1 while connected", registry=registry
        )
        self.mqtt_unacknowledged = Gauge(
            "wattvend_ingest_mqtt_unacknowledged_messages",
            "MQTT messages in work",
            registry=registry,
        )
        self.facts = Counter(
            "wattvend_ingest_registry_facts_total",
            "Facts read from the registry",
            ("outcome",),
            registry=registry,
        )
        self.not_sent = Counter(
            "wattvend_ingest_records_not_sent_total",
            "States, statuses and replies that Kafka did not take",
            ("topic",),
            registry=registry,
        )
