"""Settings every service has: read from the environment once, validated, printed when wrong."""

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings


def is_loopback(host: str) -> bool:
    """Say whether `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class ServiceSettings(BaseSettings):
    """What all services share. A subclass sets `model_config` with its prefix."""

    kafka_bootstrap: str = Field("127.0.0.1:29092", description="Kafka's bootstrap servers")
    instance: str = Field(
        ...,
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="stable name of this worker; never two processes with one name",
    )
    http_host: str = Field("127.0.0.1", description="where health and metrics listen")
    http_port: int = Field(..., ge=0, le=65535, description="port of health and metrics")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="log level")
    stop_timeout_s: int = Field(10, ge=1, le=120, description="a stop takes no longer than this")
    tls_certificate: Path | None = Field(
        None, description="PEM certificate of what this service listens on"
    )
    tls_key: Path | None = Field(None, description="PEM key of the certificate")

    @property
    def has_tls(self) -> bool:
        """Whether listeners speak TLS."""
        return self.tls_certificate is not None and self.tls_key is not None

    def listeners(self) -> dict[str, str]:
        """Return setting name → host for everything this service listens on."""
        return {"http_host": self.http_host}

    @model_validator(mode="after")
    def _exposed_only_with_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both or none")
        for path in (self.tls_certificate, self.tls_key):
            if path is not None and not path.is_file():
                raise ValueError(f"there is no file {path}")
        for name, host in self.listeners().items():
            if not is_loopback(host) and not self.has_tls:
                raise ValueError(
                    f"{name}={host} would listen beyond this machine without TLS: "
                    "set tls_certificate and tls_key, or listen on 127.0.0.1"
                )
        return self


Settings = TypeVar("Settings", bound=ServiceSettings)


def load(kind: type[Settings]) -> Settings:
    """Return the settings from the environment, or leave with exit code 2 and what to change."""
    prefix = kind.model_config.get("env_prefix", "")
    try:
        return kind()
    except ValidationError as wrong:
        print("The settings are wrong:", file=sys.stderr)  # noqa: T201 - before logging exists
        for error in wrong.errors():
            name = "_".join(str(part) for part in error["loc"]).upper()
            shown = f"{prefix}{name}" if name else "settings"
            print(f"  {shown}: {error['msg']}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
