"""What an account used, as metering charged it."""

from typing import Any, ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import MoneyEvent
from services.vending.domain.postings import Usage


@named_value_class
class UsagePosted(MoneyEvent):
    SUBJECT: ClassVar[str] = "usage-posted"

    account_sequence: int
    charged_nano: int
    energy_nano: int
    surcharge_nano: int
    ladder_nano: int
    fees_nano: int
    tax_nano: int
    undivided_nano: int
    credited_nano: int
    account_revision: int
    book_epoch: int
    meters: list[dict[str, Any]]
    row: bytes
    shard: int
    log_offset: int
    decided_at_ms: int

    @property
    def usage(self) -> Usage:
        """The totals."""
        return Usage(
            self.energy_nano,
            self.surcharge_nano,
            self.ladder_nano,
            self.fees_nano,
            self.tax_nano,
            self.undivided_nano,
        )
