"""What a judge compared, and what was wrong."""

from dataclasses import dataclass, field

from tests.recovery.faults import Fault

SHOWN_MAX = 5


@dataclass
class Verdict:
    """`judged`: comparisons made; `wrong`: each that did not hold, for a person."""

    judged: int = 0
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Count one comparison."""
        self.judged += 1
        if not holds:
            self.wrong.append(otherwise)

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.judged + other.judged, self.wrong + other.wrong)

    def check(self) -> None:
        assert not self.wrong, f"{len(self.wrong)} wrong: {self.wrong[:SHOWN_MAX]}"

    def count(self, fault: Fault) -> None:
        """Count it for the page, and check."""
        fault.judged += self.judged
        fault.lost += len(self.wrong)
        self.check()
