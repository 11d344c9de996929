"""What every command of `wattvend` does: ask, print the answer, or say what is wrong."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape

from services.common.kernel import names
from tools.client import Clients, Refused, connect
from wattvend.vending.v1 import vending_pb2 as v

DEFAULT_VENDING = "127.0.0.1:27001"
DEFAULT_REPORTING = "127.0.0.1:27002"
AMOUNT = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")
"""What int64 holds in minor units of any currency, with room."""
REGISTER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,3})?")
"""A register as a display shows it: units with at most three decimals."""
WHITE = "\n\u00a0\u3000"
OUTCOME_UNKNOWN = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN")
"""gRPC codes after which a command may have been done."""
INTERRUPTED = 130
"""What a command that Ctrl-C ends exits with."""


@dataclass
class Options:
    """What holds for every command."""

    vending: str
    reporting: str
    caller: str
    actor: str
    authority: bytes | None
    as_json: bool


options = Options(DEFAULT_VENDING, DEFAULT_REPORTING, "", "", None, as_json=False)
out = Console()
err = Console(stderr=True)

RequestId = Annotated[
    str, typer.Option("--request-id", help="Repeat an earlier request: it is not done twice.")
]
Reason = Annotated[str, typer.Option(help="why; kept in the book")]


Answer = Message | dict[str, Message]
Call = Callable[[str, Any], Awaitable[Any]]
"""What asks a service, e.g. `clients.vending`."""


def run(
    work: Callable[[Clients], Awaitable[Answer]],
    shown: Callable[[Any], Any],
    request_id: str = "",
    *,
    in_steps: bool = False,
) -> None:
    """Ask and print. A `request_id` that we made is told where the command must be repeated."""

    async def within() -> Answer:
        at = options.vending, options.reporting
        async with connect(*at, options.caller, options.authority, options.actor) as clients:
            return await work(clients)

    try:
        answer = asyncio.run(within())
    except Refused as refused:
        again = request_id if in_steps or refused.code in OUTCOME_UNKNOWN else ""
        say_refused(refused, again)
        raise SystemExit(1) from None
    except OSError as failed:  # of a file: what goes wrong with a call is Refused
        say_refused(Refused("FAILED_PRECONDITION", "", f"a file cannot be used: {failed}"))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        known = "broken off: it may have been done, or not" if request_id else "broken off"
        say_refused(Refused("CANCELLED", "", known), request_id)
        raise SystemExit(INTERRUPTED) from None
    if options.as_json:
        print(json.dumps(fields_of(answer), ensure_ascii=False))
    else:
        out.print(_Legible(shown(answer)))


@dataclass(frozen=True)
class _Legible:
    """What is printed, without what a terminal would obey, whoever wrote it into the book."""

    what: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.what, options):
            is_text = segment.control is None
            yield segment._replace(text=legible(segment.text)) if is_text else segment


def legible(text: str) -> str:
    """Return a text with a mark for each character that is neither printable nor white."""
    return "".join(each if each.isprintable() or each in WHITE else "\ufffd" for each in text)


def run_with_amount(
    method: str,
    request: Any,
    amount: Decimal | None,
    shown: Callable[[Any], Any],
    field: str = "amount_minor",
) -> None:
    """Ask for something of an account with an amount in its currency; None: with none."""

    async def work(clients: Clients) -> Answer:
        known: v.Account = await clients.vending(
            "GetAccount", v.GetAccountRequest(name=request.name)
        )
        if amount is not None:
            setattr(request, field, minor_of(amount, known.minor_decimals))
        answer: Answer = await clients.vending(method, request)
        return answer

    run(work, shown, request.request_id)


def say_refused(refused: Refused, again: str = "") -> None:
    """Say why something was refused, and by which request it may be repeated."""
    if options.as_json:
        fault = {"error": refused.reason or refused.code, "message": refused.message}
        print(json.dumps(fault | ({"request_id": again} if again else {})), file=sys.stderr)
        return
    err.print(f"[bold red]refused[/] {escape(legible(refused.message))}", highlight=False)
    err.print(f"[dim]{refused.reason or refused.code}[/]", highlight=False)
    if again:
        hint = f"repeat it with --request-id {again}: what was done is not done twice"
        err.print(hint, highlight=False, soft_wrap=True)


def fields_of(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON has it."""
    if isinstance(answer, dict):
        return {name: fields_of(part) for name, part in answer.items()}
    return MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def amount_of(text: str) -> Decimal:
    """Return an amount as typed, e.g. 100 or 99.90; leaves with what is wrong."""
    if not AMOUNT.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no amount; write e.g. 99.90")
    return Decimal(text)


async def pages(call: Call, method: str, request: Any) -> AsyncIterator[Any]:
    """Yield the pages of a list, from the one that is asked for to the last."""
    while True:
        page = await call(method, request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def whole(call: Call, method: str, request: Any) -> Any:
    """Return all pages of a list as one answer."""
    answer, *more = [page async for page in pages(call, method, request)]
    for page in more:
        answer.MergeFrom(page)
    answer.next_page_token = ""
    return answer


async def account_of(clients: Clients, account: str) -> v.Account:
    """Return an account as the book has it."""
    found: v.Account = await clients.vending(
        "GetAccount", v.GetAccountRequest(name=names.ACCOUNT.name(account))
    )
    return found


def minor_of(amount: Decimal, minor_decimals: int) -> int:
    """Return an amount in minor units; leaves where it has more decimals than the currency."""
    scaled = amount.scaleb(minor_decimals)
    if int(scaled.as_tuple().exponent) < 0:  # also of 1.000: to some that is a thousand
        raise typer.BadParameter(
            f"{amount} has more than {minor_decimals} decimals of its currency"
        )
    return int(scaled)


def register_milli(text: str) -> int:
    """Return a register as typed, e.g. 1234.56, in thousandths; leaves with what is wrong."""
    if not REGISTER.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no register; write e.g. 1234.56")
    return int(Decimal(text) * 1000)


def instant_ms(text: str) -> int:
    """Return an instant as typed, by this terminal's clock or by an offset that it tells."""
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 1000
    except ValueError:
        example = "write e.g. '2027-01-31 18:00' or '2027-01-31T18:00+08:00'"
        raise typer.BadParameter(f"{text!r} is no instant; {example}") from None
