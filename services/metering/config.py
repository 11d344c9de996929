"""Settings of metering: the environment, validated once."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.runtime.settings import ServiceSettings
from services.metering.domain.rows import PIPELINE_RECORDS_MAX


class Settings(ServiceSettings):
    """`WATTVEND_METERING_*`."""

    model_config = SettingsConfigDict(env_prefix="WATTVEND_METERING_")

    records_pending_max: int = Field(
        64,
        ge=1,
        le=PIPELINE_RECORDS_MAX,
        description="records of one shard that are absorbed but not yet durable",
    )
    header_interval_s: int = Field(
        30,
        ge=1,
        le=3600,
        description="an idle shard writes its header row this often, and so notices another writer",
    )
    accept_lost_records: bool = Field(
        False,
        description="go on although retention deleted records before they were absorbed; "
        "for one start, by a person",
    )
