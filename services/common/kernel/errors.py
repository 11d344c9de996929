"""The errors of the product, in three families.

WattvendError
├── InvalidInput   the caller must change something; carries a reason and the offending field
├── Retriable      the world may change: broker away, store conflict, device busy
└── Bug            an invariant broke: stop this partition, tell a person, lose nothing
"""

from collections.abc import Iterable

from services.common.kernel.reasons import Reason

SHOWN_SIZE_MAX = 64


def shown(value: str) -> str:
    """Return what a caller sent as a message may repeat it: quoted, and short."""
    return repr(value if len(value) <= SHOWN_SIZE_MAX else f"{value[:SHOWN_SIZE_MAX]}…")


class WattvendError(Exception):
    """Everything the product raises on purpose."""


class InvalidInput(WattvendError):  # noqa: N818 - reads as what it is: the input is invalid
    """The caller must change something.

    `message` says what is wrong and what to do; `field` names the offending input; `offers` says
    for machines what could be asked for instead.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        offers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.offers = dict(offers)


class Retriable(WattvendError):  # noqa: N818 - an adjective for what to do about it
    """The world may change: the same call may succeed later."""

    @property
    def told(self) -> str:
        """What a caller is told of it, who may not be who runs the service."""
        return str(self)


class Bug(WattvendError):  # noqa: N818 - a noun for what it is
    """An invariant of ours broke."""
