"""What goes wrong while absorbing.

Bug (kernel)
├── BadRows         the changelog's rows are not ours, or of another version and not drained
├── BadRecord       a record that cannot be of this shard's log: stop, never skip
└── CannotCharge    an account cannot be charged or judged: it is frozen, the shard goes on
"""

from services.common.kernel.errors import Bug


class BadRows(Bug):
    """Rows that this version cannot stand on."""


class BadRecord(Bug):
    """A record that the shard cannot have: the log or the shell is wrong. Nothing was changed."""


class CannotCharge(Bug):
    """Rule 9: the account freezes. Never leaves `absorb`."""
