"""The errors of reporting.

Retriable
└── Moved          the stored positions are not where this writer left them: read them again
WattvendError
├── Poison         a record of the log cannot become rows; a person decides
└── LogDisagrees   log and database do not belong together, or records are lost
"""

from services.common.kernel.errors import Retriable, WattvendError


class Moved(Retriable):
    """Somebody else wrote (a rebuild was swapped in): start again from the stored positions."""


class Poison(WattvendError):  # noqa: N818 - what such a record is called
    """A record cannot become rows. Nothing is skipped unless an operator says so."""

    def __init__(self, topic: str, partition: int, offset: int, why: str) -> None:
        super().__init__(
            f"{topic}-{partition} offset {offset} cannot be read: {why}. Nothing after it is read "
            "until its writer's fault is mended here, or an operator steps over it with "
            f"WATTVEND_REPORTING_SKIP={topic}:{partition}:{offset}"
        )


class LogDisagrees(WattvendError):  # noqa: N818 - says what is wrong
    """The log does not hold what the stored positions say."""
