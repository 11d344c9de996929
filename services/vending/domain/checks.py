"""Checks of what a caller sent that need no state. Each raises InvalidInput with what to do."""

import re
from uuid import UUID

from services.common.kernel.errors import InvalidInput, shown
from services.common.kernel.ids import ID_PATTERN, SERIAL_SIZE_MAX
from services.common.kernel.reasons import Reason
from services.common.kernel.units import CURRENCIES, Currency

TEXT_SIZE_MAX = 200
COMMODITIES = ("electricity", "water", "gas")
METHODS = ("cash", "pos", "transfer", "qr")
REGISTER_MILLI_MAX = 10**15
"""Beyond it metering calls a register absurd."""
RATIO_MAX = 1_000_000
TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999."""

_ID = re.compile(ID_PATTERN)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_PORT = re.compile(r"[0-9]{1,5}")
_NUMBER_OF_A_PERSON = re.compile(r"[0-9._-]{1,20}[Xx]?")
"""Telephone and identity-card numbers; the digits of a UUID are more."""
_SERIAL = re.compile(rf"[!-~]{{1,{SERIAL_SIZE_MAX}}}")


_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NIL = str(UUID(int=0))


def invalid(field: str, message: str, reason: Reason = Reason.INVALID_ARGUMENT) -> InvalidInput:
    """Return the error of one field."""
    return InvalidInput(reason, f"{field}: {message}", field=field)


def request_id_of(text: str) -> str:
    """Return a request id as Python writes UUIDs.

    Raises InvalidInput(REQUEST_ID_INVALID) where it is none.
    """
    if _UUID.fullmatch(text) and text != _NIL:
        return text
    try:
        found = UUID(text)
    except ValueError:
        raise invalid(
            "request_id",
            f"{shown(text)} is no UUID; make a new one for each command and keep it for repeats",
            Reason.REQUEST_ID_INVALID,
        ) from None
    if found.int == 0:
        raise invalid(
            "request_id", "the nil UUID names no request; make a new one", Reason.REQUEST_ID_INVALID
        )
    return str(found)


def check_uuid(field: str, value: str) -> None:
    """Refuse what is no id of a reading, a notice or a proposal, as the platform tells them."""
    if not _UUID.fullmatch(value):
        raise invalid(
            field, f"{shown(value)} is no id of that kind; write the UUID as it is told, in full"
        )


def check_id(field: str, value: str) -> None:
    """Refuse an id outside the pattern of ids."""
    if not _ID.fullmatch(value):
        raise invalid(
            field,
            f"{shown(value)} is no id; write 1 to 63 letters, digits, dots, underscores or dashes, "
            "beginning with a letter or digit",
        )


def _is_opaque(value: str) -> bool:
    return bool(_ID.fullmatch(value)) and not _NUMBER_OF_A_PERSON.fullmatch(value)


def check_subject(value: str) -> None:
    """Refuse what is no opaque id of a person; the error does not repeat what it may be."""
    if not _is_opaque(value):
        raise invalid(
            "subject_id",
            "write an opaque id of the person, e.g. a UUID; never a name, an address, a telephone "
            "or identity-card number: what stands in events stands there for good",
        )


def check_actor(value: str) -> None:
    """Refuse what is no opaque id of the person behind a caller; the error does not repeat it."""
    if not _is_opaque(value):
        raise invalid(
            "wattvend-actor",
            "this metadata names who is behind the call by an opaque id, e.g. the number of a user "
            "in your system with letters before it; never a name or a telephone number: what "
            "stands in events stands there for good",
        )


def check_text(field: str, value: str) -> None:
    """Refuse an empty, overlong or unprintable text."""
    if not value.strip() or len(value) > TEXT_SIZE_MAX or not value.isprintable():
        raise invalid(field, f"write 1 to {TEXT_SIZE_MAX} printable characters")


def check_legal_entity(value: str) -> None:
    """Refuse what is no name of a legal entity, or looks like another one's."""
    check_text("legal_entity", value)
    if value != value.strip():
        raise invalid("legal_entity", f"{shown(value)} has a blank at an end; write it without")


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise invalid(field, f"{shown(value)} is not known; write one of {', '.join(choices)}")


def check_between(field: str, value: int, least: int, most: int) -> None:
    """Refuse a number outside least..most."""
    if not least <= value <= most:
        raise invalid(field, f"{value} is out of range; write {least} to {most}")


def check_serial(value: str) -> None:
    """Refuse a serial number that readings cannot carry."""
    if not _SERIAL.fullmatch(value):
        raise invalid(
            "serial",
            f"{shown(value)} is no serial number; write the 1 to {SERIAL_SIZE_MAX} printable ASCII "
            "characters on the meter's plate, without spaces",
        )


def check_amount(field: str, amount_minor: int) -> None:
    """Refuse an amount of money that is not positive."""
    if amount_minor <= 0:
        raise invalid(
            field,
            f"{amount_minor} minor units cannot be sold; write an amount above 0",
            Reason.AMOUNT_NOT_POSITIVE,
        )


def check_register(register_milli: int | None, field: str = "register_milli") -> None:
    """Refuse a register that no meter can show."""
    if register_milli is None:
        return
    if register_milli < 0:
        raise invalid(
            field,
            f"{register_milli} is below 0; write the register in thousandths of its unit (Wh)",
            Reason.REGISTER_NEGATIVE,
        )
    check_between(field, register_milli, 0, REGISTER_MILLI_MAX)


def check_product_serial(address: str) -> None:
    """Refuse an address that no gateway on the broker has."""
    product, _, serial = address.partition("/")
    if not (_ID.fullmatch(product) and _ID.fullmatch(serial)):
        raise invalid("address", f"{shown(address)} is no product/serial, e.g. ADW300/2207140001")


def check_host_port(address: str) -> None:
    """Refuse an address that no socket can connect to."""
    host, _, port = address.rpartition(":")
    if not (_HOST.fullmatch(host) and _PORT.fullmatch(port) and 0 < int(port) < 65536):
        raise invalid("address", f"{shown(address)} is no host:port, e.g. 10.0.3.7:502")


def currency_named(code: str) -> Currency:
    """Return a currency. Raises InvalidInput(CURRENCY_UNKNOWN)."""
    if code not in CURRENCIES:
        raise invalid(
            "currency",
            f"{shown(code)} is not known; known are {', '.join(sorted(CURRENCIES))}",
            Reason.CURRENCY_UNKNOWN,
        )
    return CURRENCIES[code]
