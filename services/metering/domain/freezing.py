"""Rule 9: an account that cannot be charged is frozen, until its thawing is ordered."""

import numpy as np

from services.metering.domain.causes import Cause
from services.metering.domain.outbox import Outbox
from services.metering.domain.rows import NOT_DUE_MS


def freeze(out: Outbox, slot: int, cause: Cause) -> None:
    """Freeze an account (rule 9), once."""
    account = out.state.accounts[slot]
    if account["frozen"]:
        return
    account["frozen"] = True
    account["fees_due_ms"] = NOT_DUE_MS
    out.touch(np.array([slot]))
    if not account["house"]:
        out.alarm(slot, "frozen", "cannot-charge", cause)


def thaw(out: Outbox, slot: int) -> None:
    """Let a frozen account be charged again, from where its registers stood (rule 9)."""
    account = out.state.accounts[slot]
    account["frozen"] = False
    if not account["house"]:
        out.alarm(slot, "thawed", "ordered", Cause())
