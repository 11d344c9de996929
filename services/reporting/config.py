"""Settings of reporting, from the environment: WATTVEND_REPORTING_<SETTING>."""

import re

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.runtime.grpc import GrpcSettings

_DSN = re.compile(r"postgres(ql)?://(.*@)?([^/?@:]|\[[0-9A-Fa-f:.]+\])*(:\d{1,5})?([,/?]|$)")
_SKIP = re.compile(r"(?P<topic>[a-z][a-z-]*):(?P<partition>\d{1,6}):(?P<offset>\d{1,18})")


class ReportingSettings(GrpcSettings):
    """What the running service needs."""

    model_config = SettingsConfigDict(env_prefix="WATTVEND_REPORTING_")

    postgres_dsn: SecretStr = Field(
        ..., description="PostgreSQL of the read models: postgresql://user:password@host:port/name"
    )
    postgres_schema: str = Field(
        "reporting",
        pattern=r"^[a-z][a-z0-9_]{0,40}$",
        description="schema that holds the read models; the service creates it",
    )
    batch_records_max: int = Field(
        500,
        ge=1,
        le=10_000,
        description="records (a frame is one) fetched at once; "
        "full frames make several transactions of them",
    )
    readers_max: int = Field(
        8, ge=1, le=100, description="connections to PostgreSQL that answer queries"
    )
    skip: str = Field(
        "",
        description="records to step over, topic:partition:offset, several with commas; "
        "each is logged and counted",
    )

    @field_validator("postgres_dsn")
    @classmethod
    def _is_a_dsn(cls, dsn: SecretStr) -> SecretStr:
        if not _DSN.match(dsn.get_secret_value()):
            raise ValueError("write postgresql://user:password@host:port/name")
        return dsn

    @field_validator("skip")
    @classmethod
    def _names_records(cls, skip: str) -> str:
        for entry in filter(None, skip.split(",")):
            if not _SKIP.fullmatch(entry.strip()):
                raise ValueError(
                    f"{entry.strip()!r} is no topic:partition:offset, e.g. ledger:3:71"
                )
        return skip

    @property
    def skipped(self) -> frozenset[tuple[str, int, int]]:
        """Return the records to step over as (topic, partition, offset)."""
        found = (_SKIP.fullmatch(entry.strip()) for entry in self.skip.split(",") if entry)
        return frozenset(
            (match["topic"], int(match["partition"]), int(match["offset"]))
            for match in found
            if match is not None
        )
