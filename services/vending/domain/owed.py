"""What an account owes beside its use, and what of a sale goes there: emergency credit, a debt."""

from services.common.kernel.values import value_class

PPM = 1_000_000


@value_class
class Recovery:
    """What the amount of a sale becomes: the three are its whole, in minor units."""

    emergency_minor: int
    debt_minor: int
    credit_minor: int


@value_class
class Owed:
    """Emergency credit that was granted and not yet recovered; a debt, with its share of each sale.

    In minor units; `debt_share_ppm` of a sale's amount at most goes to the debt.
    """

    emergency_minor: int = 0
    debt_minor: int = 0
    debt_share_ppm: int = 0

    def __bool__(self) -> bool:
        """Say whether anything is owed."""
        return bool(self.emergency_minor or self.debt_minor)

    def recovery(self, amount_minor: int, debt_share_ppm: int | None = None) -> Recovery:
        """Return what the amount of a sale becomes: emergency credit first, then the debt's share.

        The share, None: the debt's own, is of the whole amount, half up, and of what is left at
        most.
        """
        share_ppm = self.debt_share_ppm if debt_share_ppm is None else debt_share_ppm
        emergency_minor = min(self.emergency_minor, amount_minor)
        left_minor = amount_minor - emergency_minor
        share_minor = (amount_minor * share_ppm + PPM // 2) // PPM
        debt_minor = min(share_minor, self.debt_minor, left_minor)
        return Recovery(emergency_minor, debt_minor, left_minor - debt_minor)

    def after(self, recovery: Recovery) -> "Owed":
        """Return what is owed still."""
        return Owed(
            self.emergency_minor - recovery.emergency_minor,
            self.debt_minor - recovery.debt_minor,
            self.debt_share_ppm,
        )
