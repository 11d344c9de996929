"""Usage: what metering says an account was charged, and what of it is news to the book.

Each statement is of lifetime totals at an account sequence, so the highest sequence stands, whether
it comes once, twice or late; what is posted is the difference to the totals posted last.
"""

from typing import Any

from services.common.kernel.values import value_class
from services.vending.domain import postings
from services.vending.domain.decisions import Request, stamp
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.postings import Usage


@value_class
class PostUsage:
    """An echo's totals, as of `account_sequence`, with what seeds metering's row anew.

    `meters`: where each stands, as schemas/avro/usage-posted.avsc has it; `row`: metering's own.
    """

    request: Request
    account_id: str
    account_sequence: int
    usage: Usage
    credited_nano: int
    account_revision: int
    book_epoch: int
    meters: list[dict[str, Any]]
    row: bytes
    log_offset: int
    decided_at_ms: int


@value_class
class Used:
    """What was posted last of an account: its totals at an account sequence; 0: nothing yet."""

    account_sequence: int = 0
    usage: Usage = Usage()

    def news(self, told: PostUsage, shard: int, of_what: dict[str, Any]) -> tuple[UsagePosted, ...]:
        """Return the event of a statement; none where what it tells is known, or older.

        `of_what`: currency, legal entity and commodity of the account.
        """
        if told.account_sequence <= self.account_sequence:
            return ()
        usage = told.usage
        return (
            UsagePosted(
                **stamp(told.request),
                account_id=told.account_id,
                account_sequence=told.account_sequence,
                charged_nano=usage.charged_nano,
                energy_nano=usage.energy_nano,
                surcharge_nano=usage.surcharge_nano,
                ladder_nano=usage.ladder_nano,
                fees_nano=usage.fees_nano,
                tax_nano=usage.tax_nano,
                undivided_nano=usage.undivided_nano,
                credited_nano=told.credited_nano,
                account_revision=told.account_revision,
                book_epoch=told.book_epoch,
                meters=told.meters,
                row=told.row,
                shard=shard,
                log_offset=told.log_offset,
                decided_at_ms=told.decided_at_ms,
                **of_what,
                postings=postings.of_usage(of_what["commodity"], self.usage, usage),
            ),
        )
