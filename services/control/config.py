"""Settings of control, from the environment; README.md lists them."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.runtime.mqtt import MqttSettings
from services.common.runtime.settings import SkipSettings
from services.control.domain.delivery import Limits


class ControlSettings(MqttSettings, SkipSettings):
    """WATTVEND_CONTROL_*."""

    model_config = SettingsConfigDict(env_prefix="WATTVEND_CONTROL_")

    mqtt_enabled: bool = Field(True, description="command MQTT devices; needs the broker")
    tick_ms: int = Field(100, ge=10, le=1000, description="how often deadlines are looked at")
    command_valid_ms: int = Field(
        5000, ge=500, le=30_000, description="a device gets a command this long after its decision"
    )
    reply_timeout_ms: int = Field(
        8000, ge=1000, le=60_000, description="without a reply for this long an attempt has failed"
    )
    read_back_pause_ms: int = Field(
        500, ge=50, le=10_000, description="between two read-backs of one attempt"
    )
    read_back_window_ms: int = Field(
        5000, ge=500, le=60_000, description="an attempt not read back for this long has failed"
    )
    attempts_per_burst: int = Field(
        6, ge=1, le=100, description="attempts of a cut until its lease is renewed"
    )
    backoff_base_ms: int = Field(
        500, ge=50, le=60_000, description="pause after the first failed attempt; doubles"
    )
    backoff_max_ms: int = Field(
        60_000, ge=100, le=3_600_000, description="longest pause between two attempts"
    )
    registry_grace_ms: int = Field(
        2000, ge=0, le=60_000, description="how long the registry may lag behind an intent silently"
    )
    contacts_ms: int = Field(
        1000, ge=0, le=60_000, description="a relay moves within this after the acknowledgement"
    )
    recover_window_s: int = Field(
        600, ge=60, le=86_400, description="how far back outcomes are read at a start"
    )

    @property
    def limits(self) -> Limits:
        """The bounds of delivery."""
        return Limits(
            command_valid_ms=self.command_valid_ms,
            reply_timeout_ms=self.reply_timeout_ms,
            read_back_pause_ms=self.read_back_pause_ms,
            read_back_window_ms=self.read_back_window_ms,
            attempts_per_burst=self.attempts_per_burst,
            backoff_base_ms=self.backoff_base_ms,
            backoff_max_ms=self.backoff_max_ms,
            registry_grace_ms=self.registry_grace_ms,
            contacts_ms=self.contacts_ms,
        )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.reply_timeout_ms <= self.command_valid_ms:
            raise ValueError(
                f"reply_timeout_ms={self.reply_timeout_ms} must be above "
                f"command_valid_ms={self.command_valid_ms}: a command given up must be void"
            )
        if self.read_back_window_ms <= self.contacts_ms:
            raise ValueError(
                f"read_back_window_ms={self.read_back_window_ms} must be above "
                f"contacts_ms={self.contacts_ms}: the relay must have moved before it is judged"
            )
        if self.backoff_max_ms < self.backoff_base_ms:
            raise ValueError(
                f"backoff_max_ms={self.backoff_max_ms} must not be below "
                f"backoff_base_ms={self.backoff_base_ms}"
            )
        return self
