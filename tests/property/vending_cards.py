"""The cards of the meters: whose each is, between which registers, and how its relay is ordered."""

from collections import Counter
from dataclasses import dataclass, field

from services.common.kernel.ids import house_account_id
from tests.property.vending_paper import AS_CHARGED, Ask

PREPAID = "prepaid"


@dataclass
class Card:
    """What a clerk writes on the card of a meter; registers in thousandths, None: nobody knows.

    `owner`: "" for its house, `before`: who had it in the epoch before. `joined`: the epoch and the
    register at which it came to its owner. `cut_by`: the closing that has cut it.
    """

    serial: str
    shows_milli: int = 1_000
    owner: str = ""
    before: str = ""
    epoch: int = 1
    opened_milli: int | None = None
    closed_milli: int | None = None
    charged_milli: int | None = None
    joined: tuple[int, int] = (0, 0)
    forced: str = PREPAID
    cut_by: str = ""
    used: Counter[str] = field(default_factory=Counter)
    """What each account used, by the registers at which the meter came and left."""

    def ends_at(self, register_milli: int) -> int | None:
        """Return the register that a request means."""
        return self.charged_milli if register_milli == AS_CHARGED else register_milli

    def is_below(self, register_milli: int) -> bool:
        """Say whether an epoch would end where a customer gets back what he has used."""
        floor = self.opened_milli if self.charged_milli is None else self.charged_milli
        ends_at = self.ends_at(register_milli)
        if not self.owner or floor is None or ends_at is None:
            return False
        return ends_at < floor

    def goes_to(self, owner: str, register_milli: int) -> None:
        """Let it be another's from a register on; who cut it has no say about the next tenant."""
        self.next_epoch(owner, register_milli, register_milli)
        self.joined = self.epoch, register_milli
        self.cut_by = "" if owner else self.cut_by

    def next_epoch(self, owner: str, ends_milli: int, begins_milli: int) -> None:
        self.used[self.owner] += ends_milli
        self.used[owner] -= begins_milli
        self.before, self.owner = self.owner, owner
        self.epoch += 1
        self.opened_milli, self.closed_milli = begins_milli, ends_milli
        self.charged_milli = None

    def replaced(self, ask: Ask) -> None:
        """Let another device hang there, which shows another register."""
        ends_milli = self.ends_at(ask.register_milli)
        assert ends_milli is not None
        self.next_epoch(self.owner, ends_milli, ask.amount)
        self.serial, self.shows_milli = ask.about, ask.amount

    def switch(self, position: str, closing_id: str = "") -> None:
        self.forced = position
        self.cut_by = closing_id if position == "off" else ""

    def refusal_to_switch(self, position: str, *, by_batch: bool) -> str:
        """Say why an order of a person changes nothing, or must not be one of many."""
        if self.forced == position and not self.cut_by:
            return "NOTHING_CHANGES"
        is_cut = by_batch and position != "off" and self.cut_by
        return "CUT_BY_CLOSING" if is_cut else ""

    def says(self, meter_id: str) -> tuple[object, ...]:
        """Return all that the book must say of the meter."""
        owner = self.owner or house_account_id(meter_id)
        registers = self.opened_milli, self.closed_milli
        return owner, self.epoch, self.serial, *registers, self.forced, self.cut_by
