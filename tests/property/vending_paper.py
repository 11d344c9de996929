"""What persons ask for, and what they and the office go by."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor, trunc

from services.common.kernel.ids import name_uuid
from services.vending.domain.approval import approval_id_of
from services.vending.domain.batching import batch_id_of
from services.vending.domain.closing import closing_id_of
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.document import document_id_of
from services.vending.domain.origin import Origin
from tests.unit.vending_world import T0_MS

HOLDS = ("refund", "transfer")
"""What waits for metering to say what is left."""
KEPT = {*HOLDS, "sell", "sell energy", "grant", "adjust", "reverse", "write-off"}
"""Of these a refusal is an event, so that a repeat is refused alike; else it is judged anew."""
CLOSINGS = ("close", "close part")
DOCUMENTS = ("tariff", "policy")
MOVES = ("assign", "move", "release", "replace")
"""What ends an epoch of a meter, at a register."""
AS_CHARGED = -1
"""In the place of a register: the one that was charged last."""
ORDERS = ("off", "on", "prepaid")
SWITCHING = {f"batch {position}": position for position in ORDERS}
OF_METERS = SWITCHING | {"batch export": "export"}
BATCHES = {"batch sale": "sell", "batch adjust": "adjust", "batch terms": "terms"} | OF_METERS
"""With what each does to its targets."""
SHARE_PPM = 200_000
VERSIONS = {"T1": "800000", "T2": "900000", "P1": "15000/2/300", "P2": "0/0/500"}
"""A price in millionths; the fee's share in millionths, what of it is fixed, emergency credit."""
ROUNDING = {"P1": "down", "P2": "up"}
ROUNDED: dict[str, Callable[[Fraction], int]] = {
    "down": trunc,
    "up": lambda left: ceil(left) if left > 0 else floor(left),
    "half-even": round,
}
LIMITS = {
    "reversal": 500,
    "refund": 800,
    "adjustment": 100,
    "transfer": 1_000,
    "emergency": 400,
    "batch": 1,
}
ALONE = {
    **LIMITS,
    **dict.fromkeys(
        ("debt", "authority", "force-off", "closing", "move", "exchange", "keep-power")
    ),
}
"""What one may do; giving up what is owed, a register, a price, an export always need two."""


def receipt_of(*name: str) -> str:
    """Return the receipt of a sale that is a step of a process."""
    return str(name_uuid("receipt", "~vending", str(name_uuid("process", *name))))


@dataclass(frozen=True)
class Ask:
    """A request of a person.

    `account`: or a meter, or the tariff or policy of a document; `amount`: or when that shall
    apply, or the register of a new device; `about`: a receipt, what is given up, an outside
    transaction, where a transfer goes, meters, targets, from where and to where a meter goes.
    """

    what: str
    account: str
    person: str
    number: int
    amount: int = 0
    about: str = ""
    register_milli: int = 0

    @property
    def request(self) -> Request:
        content = (self.what, self.account, self.amount, self.about)
        request_id, origin = str(name_uuid("ask", self.number)), Origin("desk", self.person)
        return Request("desk", request_id, fingerprint(*content), T0_MS, origin=origin)

    @property
    def submission(self) -> Request:
        """The request by which a batch is submitted that was drafted a moment before."""
        request_id = str(name_uuid("submission", self.number))
        return replace(self.request, request_id=request_id)

    @property
    def proposal_id(self) -> str:
        """What a second person approves."""
        request = self.submission if self.what in BATCHES else self.request
        if self.what in DOCUMENTS:
            request = process_step("publish", document_id_of(request))
        elif self.what == "settle by itself":
            request = process_step("closing-settle", self.about)
        return approval_id_of(request)

    @property
    def closing_id(self) -> str:
        return closing_id_of(*self.request.key)

    @property
    def batch_id(self) -> str:
        return batch_id_of(self.request)


def process_step(*name: str) -> Request:
    return Request("~vending", str(name_uuid("process", *name)), b"", T0_MS)
