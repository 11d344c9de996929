"""Resource names of what stands in the book: services.common.kernel.names, and of its streams."""

from services.common.kernel.names import (
    ACCOUNT,
    APPROVAL,
    AUTHORITY,
    BATCH,
    CLOSING,
    DOCUMENT,
    GATEWAY,
    LEGAL_ENTITY,
    METER,
    OPENING,
    PAYMENT,
    POLICY,
    RECEIPT,
    SELLER,
    SITE,
    TARIFF,
    Pattern,
)

__all__ = [
    "ACCOUNT",
    "APPROVAL",
    "AUTHORITY",
    "BATCH",
    "CLOSING",
    "DOCUMENT",
    "GATEWAY",
    "LEGAL_ENTITY",
    "METER",
    "OPENING",
    "PAYMENT",
    "POLICY",
    "RECEIPT",
    "SELLER",
    "SITE",
    "TARIFF",
    "of_stream",
]

_OF_STREAM: dict[str, Pattern] = {
    "account": ACCOUNT,
    "authority": AUTHORITY,
    "batch": BATCH,
    "gateway": GATEWAY,
    "meter": METER,
    "policy": POLICY,
    "site": SITE,
    "tariff": TARIFF,
}
"""What a proposal's command can happen to, by the kind that its stream begins with."""


def of_stream(stream: str) -> str:
    """Return the name of what a stream is of, e.g. accounts/A1 of account-A1."""
    kind, _, entity_id = stream.partition("-")
    return _OF_STREAM[kind].name(entity_id)
