"""vending's settings: WATTVEND_VENDING_*."""

import re
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.runtime.grpc import GrpcSettings
from services.common.runtime.settings import SkipSettings

HOUR_MS = 3_600_000
_STORE = re.compile(
    r"|sqlite:.+|(postgres(ql)?|(esdb|kurrentdb)(\+discover)?)://(.*@)?[^/?@]*([/?].*)?"
)


class VendingSettings(GrpcSettings, SkipSettings):
    """Read from the environment once, at start."""

    model_config = SettingsConfigDict(env_prefix="WATTVEND_VENDING_")

    instance: str = Field(
        "vending-0",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="stable name of this worker; never two processes with one name",
    )
    http_port: int = Field(27103, ge=0, le=65535, description="port of health and metrics")
    grpc_port: int = Field(27001, ge=0, le=65535, description="port of gRPC; 0: any free one")
    store: SecretStr = Field(
        SecretStr(""),
        description="the event store: sqlite:PATH, postgresql://user:password@host:port/name or "
        "kurrentdb://user:password@host:port/name; where empty, the file that store_path names",
    )
    store_path: Path = Field(
        Path("data/vending/events.sqlite"), description="the event store: a SQLite file"
    )
    tariff_lead_ms: int = Field(
        HOUR_MS, ge=0, le=366 * 24 * HOUR_MS, description="how far ahead a new price must lie"
    )
    hold_lasts_ms: int = Field(
        HOUR_MS,
        ge=60_000,
        le=31 * 24 * HOUR_MS,
        description="how long a refund or a transfer waits for metering; then it is refused",
    )
    checkpoint_interval_ms: int = Field(
        1000, ge=50, le=60_000, description="how often the relay writes how far it is"
    )
    signing_key: Path | None = Field(
        None,
        description="PEM file of the Ed25519 key that signs checkpoints; none: they are not signed",
    )
    public_keys: Path | None = Field(
        None, description="PEM file of the public keys of checkpoints signed before, for `verify`"
    )
    usage_at_minute: int = Field(
        960,
        ge=0,
        lt=1440,
        description="minute of the day (UTC) from which on metering is asked what was used",
    )
    usage_asks_per_s: int = Field(
        20, ge=1, le=1000, description="accounts that metering is asked about a second, at most"
    )
    reporting: str = Field(
        "",
        pattern=r"^(\[[0-9A-Fa-f:.]+\]:\d{1,5}|[^\s:]+:\d{1,5})?$",
        description="reporting's gRPC, `host:port`, which resolves the filters of batches and "
        "writes exports; empty: batches take lists alone, and export nothing",
    )
    reporting_ca: Path | None = Field(
        None, description="PEM file of the authority that reporting's certificate is from; set: TLS"
    )
    states_cached_max: int = Field(
        20_000, ge=1, le=10_000_000, description="folded streams kept in memory"
    )

    @field_validator("store")
    @classmethod
    def _is_an_address(cls, store: SecretStr) -> SecretStr:
        if not _STORE.fullmatch(store.get_secret_value()):
            raise ValueError(
                "write sqlite:PATH, or postgresql:// or kurrentdb:// user:password@host:port/name"
            )
        return store

    @property
    def store_address(self) -> str:
        """Where the book stands; a password may be in it."""
        return self.store.get_secret_value() or f"sqlite:{self.store_path}"
