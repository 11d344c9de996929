"""Refunds and transfers that wait for metering, as operations."""

from google.protobuf.message import Message

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.vending.adapters import names
from services.vending.adapters.api import messages, operations
from services.vending.adapters.api.desk import Desk
from services.vending.application.holds import Ended, Look
from services.vending.domain.approval import Failure
from services.vending.domain.decisions import Request
from services.vending.domain.events.refunds import (
    CreditRefunded,
    RefundHeld,
    TransferArrived,
)
from wattvend.vending.v1 import accounts_pb2
from wattvend.vending.v1 import vending_pb2 as pb

REFUNDS, TRANSFERS = "refunds", "transfers"


class HoldOperations:
    """services.vending.adapters.api.operations.Kind: refunds, or transfers.

    Its metadata is what was asked for, as a Refund without a receipt or a TransferCreditResponse;
    an amount of 0: all that is left.
    """

    def __init__(self, desk: Desk, *, are_transfers: bool) -> None:
        """Look at those of the desk's office."""
        self._holds = desk.office.holds
        self._are_transfers = are_transfers

    async def view(self, id_: str) -> operations.View:
        """Return one. Raises InvalidInput(OPERATION_NOT_FOUND)."""
        look = await self._holds.look(id_)
        if look.row.is_transfer != self._are_transfers:
            raise operations.not_found(f"{TRANSFERS if self._are_transfers else REFUNDS}/{id_}")
        return _view(look)

    async def page(
        self, done: bool | None, after: int, limit: int
    ) -> list[tuple[int, operations.View]]:
        """Return (position, view) above a position, oldest first."""
        is_open = None if done is None else not done
        found = await self._holds.page(self._are_transfers, is_open, after, limit)
        return [(look.row.position, _view(look)) for look in found]

    async def cancel(self, id_: str, request: Request) -> None:  # noqa: ARG002 - of a Kind
        """Refuse: metering may have answered already."""
        text = f"hold {id_} ends by metering's echo, or at its deadline: wait for that"
        raise InvalidInput(Reason.REFUND_UNDER_WAY, text, field="name")


def _view(look: Look) -> operations.View:
    asked, ended = look.held, look.ended
    if ended is None:
        return operations.View(look.row.hold_id, _asked(asked), done=False)
    paid = _paid(ended)
    failure = None if paid else Failure(*_why(ended))
    return operations.View(look.row.hold_id, _asked(asked), True, paid, failure)


def _asked(held: RefundHeld) -> Message:
    if held.to_account_id:
        return accounts_pb2.TransferCreditResponse(
            account=names.ACCOUNT.name(held.account_id),
            to_account=names.ACCOUNT.name(held.to_account_id),
            amount_minor=held.amount_minor,
            currency=held.currency,
        )
    return pb.Refund(
        account=names.ACCOUNT.name(held.account_id),
        amount_minor=held.amount_minor,
        currency=held.currency,
        legal_entity=names.LEGAL_ENTITY.name(held.legal_entity),
        method=held.method,
        reason=held.reason,
    )


def _paid(ended: Ended) -> Message | None:
    """Return what was paid out, or has arrived; None: nothing."""
    if isinstance(ended, CreditRefunded):
        return messages.refund(ended)
    if isinstance(ended, TransferArrived):
        return accounts_pb2.TransferCreditResponse(
            account=names.ACCOUNT.name(ended.account_id),
            to_account=names.ACCOUNT.name(ended.to_account_id),
            amount_minor=ended.amount_minor,
            currency=ended.currency,
        )
    return None


def _why(ended: Ended) -> tuple[str, str]:
    assert not isinstance(ended, CreditRefunded | TransferArrived), "that was paid"
    reason: str = ended.reason
    return reason, ended.message
