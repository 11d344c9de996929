"""Settings every service has: read from the environment once, validated, printed when wrong."""

import re
import ssl
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings

from services.common.kernel.errors import WattvendError

_SERVER = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}"


class WrongSettings(WattvendError):  # noqa: N818 - reads as what it is
    """A setting cannot be used here, e.g. its port is taken. The service exits with code 2."""


def is_loopback(host: str) -> bool:
    """Say whether `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _usable_authority(path: Path) -> Path:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as unusable:
        raise ValueError(
            f"{path} is no usable certificate authority: {unusable.strerror or unusable}; "
            "name a PEM file"
        ) from unusable
    return path


AuthorityFile = Annotated[Path, AfterValidator(_usable_authority)]
"""A PEM file of the certificate authority that a server's certificate is from."""


class ServiceSettings(BaseSettings):
    """What all services share. A subclass sets `model_config` with its prefix."""

    kafka_bootstrap: str = Field(
        "127.0.0.1:29092",
        pattern=rf"^{_SERVER}(,{_SERVER})*$",
        description="Kafka's bootstrap servers",
    )
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

    @classmethod
    def env_name(cls, name: str) -> str:
        """Return the environment variable of a setting, e.g. WATTVEND_INGEST_HTTP_PORT."""
        return f"{cls.model_config.get('env_prefix', '')}{name}".upper()

    def server_tls(self) -> ssl.SSLContext | None:
        """Return what listeners speak TLS with, None without. Raises OSError for unusable files."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.tls_certificate, self.tls_key)
        return context

    @model_validator(mode="after")
    def _exposed_only_with_tls(self) -> Self:
        both = f"{self.env_name('tls_certificate')} and {self.env_name('tls_key')}"
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError(f"{both} belong together: set both or none")
        try:
            self.server_tls()
        except OSError as unusable:
            raise ValueError(
                f"{both} are no usable certificate and key: {unusable.strerror or unusable}; "
                "name two PEM files that belong to each other"
            ) from unusable
        for name, host in self.listeners().items():
            if not is_loopback(host) and not self.has_tls:
                raise ValueError(
                    f"{self.env_name(name)}={host} would listen beyond this machine without TLS: "
                    f"set {both}, or listen on 127.0.0.1"
                )
        return self


_PLACE = re.compile(r"(?P<topic>[a-z][a-z-]*):(?P<partition>\d{1,6}):(?P<offset>\d{1,18})")


class SkipSettings(ServiceSettings):
    """For services that stop at a record they cannot read: a person may step over it."""

    skip: str = Field(
        "",
        description="records to step over, topic:partition:offset, several with commas; "
        "each is logged and counted",
    )

    @field_validator("skip")
    @classmethod
    def _names_records(cls, skip: str) -> str:
        for entry in filter(None, skip.split(",")):
            if not _PLACE.fullmatch(entry.strip()):
                raise ValueError(
                    f"{entry.strip()!r} is no topic:partition:offset, e.g. ledger:3:71"
                )
        return skip

    @property
    def skipped(self) -> frozenset[tuple[str, int, int]]:
        """Return the records to step over as (topic, partition, offset)."""
        found = (_PLACE.fullmatch(entry.strip()) for entry in self.skip.split(",") if entry)
        return frozenset(
            (match["topic"], int(match["partition"]), int(match["offset"]))
            for match in found
            if match is not None
        )


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
            shown = f"{prefix}{name}: " if name else ""
            said = error["msg"].removeprefix("Value error, ")
            print(f"  {shown}{said}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
