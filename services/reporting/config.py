"""Settings of reporting, from the environment: WATTVEND_REPORTING_<SETTING>."""

import re

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.runtime.grpc import GrpcSettings
from services.common.runtime.settings import SkipSettings

_DSN = re.compile(r"postgres(ql)?://(.*@)?([^/?@:]|\[[0-9A-Fa-f:.]+\])*(:\d{1,5})?([,/?]|$)")


class ReportingSettings(GrpcSettings, SkipSettings):
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
    export_keep_days: int = Field(
        30, ge=1, le=400, description="days after which an export of readings is removed"
    )

    @field_validator("postgres_dsn")
    @classmethod
    def _is_a_dsn(cls, dsn: SecretStr) -> SecretStr:
        if not _DSN.match(dsn.get_secret_value()):
            raise ValueError("write postgresql://user:password@host:port/name")
        return dsn
