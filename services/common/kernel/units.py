"""Energy and money are integers. Units are in the names; what would overflow is rejected.

energy, volume   *_milli   thousandth of the billing unit (Wh, litre)
price            *_micro   micro-currency per billing unit
charge, balance  *_nano    nano-currency: milli x micro is exactly nano
money in or out  *_minor   minor units (fen, cent)

A currency whose everyday sums would end int64 nano keeps six decimals in the ledger instead of
nine. Price and ledger move together: there *_micro is in thousandths of the currency and *_nano in
millionths, and milli x price is exactly one ledger unit all the same.
"""

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)


_TO_THE = tuple(int(10**power) for power in range(19))


@value_class
class Currency:
    """A currency: how many decimals a person sees and how many the ledger keeps."""

    code: str
    minor_decimals: int
    ledger_decimals: int

    @property
    def nano_per_minor(self) -> int:
        """Ledger units in one minor unit; 10^7 for a fen."""
        return _TO_THE[self.ledger_decimals - self.minor_decimals]

    @property
    def price_decimals(self) -> int:
        """Decimals of a price per billing unit: three fewer than the ledger's; 6 for CNY."""
        return self.ledger_decimals - 3


# ISO 4217 minor decimals; six ledger decimals where everyday sums would end int64 nano.
CURRENCIES = {
    currency.code: currency
    for currency in (
        Currency("CNY", 2, 9),
        Currency("EUR", 2, 9),
        Currency("USD", 2, 9),
        Currency("GBP", 2, 9),
        Currency("ZAR", 2, 9),
        Currency("KES", 2, 9),
        Currency("NGN", 2, 9),
        Currency("INR", 2, 9),
        Currency("JPY", 0, 9),
        Currency("IDR", 2, 6),
        Currency("VND", 0, 6),
    )
}


def fits_int64(value: int) -> bool:
    """Say whether `value` can be stored."""
    return INT64_MIN <= value <= INT64_MAX


def nano_from_minor(amount_minor: int, currency: Currency) -> int:
    """Return `amount_minor` in ledger units.

    Raises InvalidInput(AMOUNT_TOO_LARGE) where the ledger could not hold it.
    """
    nano = amount_minor * currency.nano_per_minor
    if not fits_int64(nano):
        raise InvalidInput(
            Reason.AMOUNT_TOO_LARGE,
            f"{amount_minor} minor units of {currency.code} do not fit the ledger; "
            f"the most is {INT64_MAX // currency.nano_per_minor}",
            field="amount_minor",
        )
    return nano


def format_scaled(value: int, scale: int, decimals: int | None = None) -> str:
    """Return `value` x 10^-scale for a person, rounded half away from zero to `decimals`.

    `format_scaled(12345, 3)` is "12.345"; `format_scaled(12345, 3, 2)` is "12.35".
    """
    shown = scale if decimals is None else decimals
    step = int(10 ** (scale - shown))
    rounded = (abs(value) + step // 2) // step
    whole, fraction = divmod(rounded, int(10**shown))
    sign = "-" if value < 0 and rounded else ""
    return f"{sign}{whole}.{fraction:0{shown}d}" if shown else f"{sign}{whole}"


def format_nano(nano: int, currency: Currency, *, decimals: int | None = None) -> str:
    """Return an amount for a person, e.g. `12.34 CNY`; exact unless `decimals` cuts it."""
    text = format_scaled(nano, currency.ledger_decimals, decimals)
    if decimals is None:
        head, _, tail = text.partition(".")
        kept = tail.rstrip("0").ljust(currency.minor_decimals, "0")
        text = f"{head}.{kept}" if kept else head
    return f"{text} {currency.code}"
