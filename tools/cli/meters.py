"""`wattvend meter`: whose a meter is, what hangs there, its relay, its held readings."""

from typing import Annotated
from uuid import uuid4

import typer

from services.common.kernel import names
from tools.cli import show
from tools.cli.asking import Reason, RequestId, register_milli, run
from wattvend.vending.v1 import accounts_pb2 as a
from wattvend.vending.v1 import vending_pb2 as v

meter_app = typer.Typer(
    no_args_is_help=True,
    help="Meters: assign, move, release, replace; orders about relay and readings.",
)
MeterId = Annotated[str, typer.Argument(help="meter id")]
Register = Annotated[str, typer.Option(help="as the display shows it; default: the last charged")]


@meter_app.command("assign")
def meter_assign(
    meter: MeterId,
    account: Annotated[str, typer.Argument(help="account id")],
    register: Register = "",
    request_id: RequestId = "",
) -> None:
    """Give a meter to an account, at a register."""
    request = v.AssignMeterRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        account=names.ACCOUNT.name(account),
        register_milli=register_milli(register) if register else None,
    )
    run(lambda clients: clients.vending("AssignMeter", request), show.meter, request.request_id)


@meter_app.command("release")
def meter_release(meter: MeterId, register: Register = "", request_id: RequestId = "") -> None:
    """Take a meter from its account; the house owns what it uses from there on."""
    request = v.ReleaseMeterRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        register_milli=register_milli(register) if register else None,
    )
    run(lambda clients: clients.vending("ReleaseMeter", request), show.meter, request.request_id)


@meter_app.command("move")
def meter_move(
    meter: MeterId,
    from_account: Annotated[str, typer.Argument(help="id of the account that has it")],
    to_account: Annotated[str, typer.Argument(help="id of the account that gets it")],
    register: Register = "",
    request_id: RequestId = "",
) -> None:
    """Give a meter of an account to another one, at one register."""
    request = a.MoveMeterRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        from_account=names.ACCOUNT.name(from_account),
        to_account=names.ACCOUNT.name(to_account),
        register_milli=register_milli(register) if register else None,
    )
    run(lambda clients: clients.accounts("MoveMeter", request), show.meter, request.request_id)


@meter_app.command("show")
def meter_show(meter: MeterId) -> None:
    """Show what the book says of a meter."""
    request = v.GetMeterRequest(name=names.METER.name(meter))
    run(lambda clients: clients.vending("GetMeter", request), show.meter)


@meter_app.command("replace")
def meter_replace(  # noqa: PLR0917 - a command line is parsed by name
    meter: MeterId,
    closing: Annotated[str, typer.Option(help="last register of before, e.g. 1234.56")],
    reason: Reason,
    opening: Annotated[str, typer.Option(help="first register of now")] = "0",
    serial: Annotated[str, typer.Option(help="of the new device; default: as it was")] = "",
    unit: Annotated[int, typer.Option(help="bus address; default: as it was")] = 0,
    profile: Annotated[str, typer.Option(help="of the new device; default: as it was")] = "",
    ratio: Annotated[int, typer.Option(help="CT x PT; default: as it was")] = 0,
    max_power_w: Annotated[int, typer.Option(help="behind the meter; default: as it was")] = 0,
    request_id: RequestId = "",
) -> None:
    """Let another device, or a register that began anew, count on for the same account."""
    request = v.ReplaceMeterRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        closing_register_milli=register_milli(closing),
        opening_register_milli=register_milli(opening),
        reason=reason,
        serial=serial or None,
        unit=unit or None,
        profile=profile or None,
        ratio=ratio or None,
        max_power_w=max_power_w or None,
    )
    run(lambda clients: clients.vending("ReplaceMeter", request), show.meter, request.request_id)


@meter_app.command("ratio")
def meter_ratio(
    meter: MeterId,
    ratio: Annotated[int, typer.Argument(help="CT x PT")],
    reason: Reason,
    register: Register = "",
    request_id: RequestId = "",
) -> None:
    """Give a meter another ratio, from a register on."""
    request = v.ChangeRatioRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        ratio=ratio,
        register_milli=register_milli(register) if register else None,
        reason=reason,
    )
    run(lambda clients: clients.vending("ChangeRatio", request), show.meter, request.request_id)


@meter_app.command("resolve")
def meter_resolve(
    meter: MeterId,
    reading: Annotated[str, typer.Argument(help="id of the held reading, as its alarm tells it")],
    resolution: Annotated[str, typer.Argument(help="accept: it is true; reject: it is not")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Say what a held reading is."""
    request = v.ResolveReadingRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        reading_id=reading,
        resolution=resolution,
        reason=reason,
    )
    run(lambda clients: clients.vending("ResolveReading", request), show.meter, request.request_id)


@meter_app.command("force")
def meter_force(
    meter: MeterId,
    position: Annotated[str, typer.Argument(help="off, on; prepaid: as the balance says")],
    reason: Reason,
    request_id: RequestId = "",
) -> None:
    """Force a relay off or on whatever the balance, or let the balance decide again."""
    request = v.ForceRelayRequest(
        request_id=request_id or str(uuid4()),
        name=names.METER.name(meter),
        position=position,
        reason=reason,
    )
    run(lambda clients: clients.vending("ForceRelay", request), show.meter, request.request_id)
