"""Settings of ingest, from WATTVEND_INGEST_* in the environment."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.runtime.mqtt import MqttSettings


class IngestSettings(MqttSettings):
    """What ingest can be told."""

    model_config = SettingsConfigDict(env_prefix="WATTVEND_INGEST_")

    instance: str = Field(
        "ingest-0",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="stable name of this worker, also its MQTT client id; "
        "never two processes with one name",
    )
    http_port: int = Field(27_101, ge=0, le=65_535, description="port of health and metrics")

    linger_ms: int = Field(
        200, ge=0, le=10_000, description="longest wait of a reading for its frame to fill"
    )
    unacknowledged_readings_max: int = Field(
        50_000,
        ge=500,
        le=1_000_000,
        description="readings that may wait for Kafka; beyond it polled ones are not kept "
        "(counted as dropped: the next reading covers them)",
    )
    relay_state_interval_ms: int = Field(
        10_000, ge=100, le=3_600_000, description="an unchanged relay position is told this often"
    )
    status_refresh_ms: int = Field(
        30_000, ge=1_000, le=3_600_000, description="an unchanged device status is told this often"
    )

    lines_enabled: bool = Field(True, description="own polled lines")
    poll_interval_ms: int = Field(
        60_000, ge=100, le=86_400_000, description="each meter of a line is read this often"
    )
    transaction_timeout_ms: int = Field(
        1_000, ge=20, le=30_000, description="a device answers within this, or not at all"
    )
    offline_after_failures: int = Field(
        2, ge=1, le=100, description="silences in a row that make a polled meter offline"
    )
    probe_backoff_max_ms: int = Field(
        5_000,
        ge=100,
        le=600_000,
        description="a silent meter is probed at least this often, "
        "as far as a quarter of the line's time allows",
    )
    reconnect_backoff_max_ms: int = Field(
        5_000, ge=100, le=600_000, description="longest wait between two tries to reach a gateway"
    )
    serial_recheck_ms: int = Field(
        30_000,
        ge=100,
        le=86_400_000,
        description="a meter that told another serial is asked again after this",
    )
    line_requests_max: int = Field(
        256, ge=1, le=10_000, description="requests that may wait for one line; more are refused"
    )
    set_clocks: bool = Field(
        True, description="set clocks of polled meters that are wrong; false: only tell of them"
    )

    mqtt_enabled: bool = Field(
        True, description="subscribe to MQTT; in a fleet of workers exactly one does"
    )
    mqtt_keepalive_s: int = Field(30, ge=5, le=3_600, description="MQTT keep alive")
    mqtt_reconnect_max_s: int = Field(
        5, ge=1, le=600, description="longest wait between two tries to reach the MQTT broker"
    )
    mqtt_inflight_max: int = Field(
        20_000,
        ge=100,
        le=65_535,
        description="MQTT messages in work at once; more without acknowledgement (QoS 0) are "
        "dropped and counted. The broker's own window should be at least 2 x rate x "
        "(linger + acknowledgement time)",
    )
    mqtt_offline_after_ms: int = Field(
        2_700_000,
        ge=100,
        le=864_000_000,
        description="silence that makes an MQTT meter or gateway offline: three reports' time",
    )
