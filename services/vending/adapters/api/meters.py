"""Meters: what exists, whose it is, and what is ordered of it."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers, said
from services.vending.domain.meter_orders import ForceRelay, ResolveReading
from wattvend.vending.v1 import vending_pb2 as pb


class Meters(Handlers):
    """Their methods of VendingService."""

    async def RegisterMeter(self, request: pb.RegisterMeterRequest, context: Any) -> pb.Meter:
        """Let a meter exist, its house's."""
        outcome = await self._office.register_meter(
            await self._desk.request(request, context),
            meter_id=request.meter_id,
            serial=request.serial,
            gateway_id=names.GATEWAY.id("gateway", request.gateway),
            unit=request.unit,
            profile=request.profile,
            commodity=request.commodity,
            ratio=request.ratio,
            max_power_w=said(request, "max_power_w"),
        )
        return self._desk.told(messages.meter, outcome.state)

    async def AssignMeter(self, request: pb.AssignMeterRequest, context: Any) -> pb.Meter:
        """Give a house's meter to an account."""
        outcome = await self._office.assign_meter(
            await self._desk.request(request, context),
            names.METER.id("name", request.name),
            names.ACCOUNT.id("account", request.account),
            said(request, "register_milli"),
        )
        return self._desk.told(messages.meter, outcome.state)

    async def ReleaseMeter(self, request: pb.ReleaseMeterRequest, context: Any) -> pb.Meter:
        """Give a meter back to its house."""
        outcome = await self._office.release_meter(
            await self._desk.request(request, context),
            names.METER.id("name", request.name),
            said(request, "register_milli"),
        )
        return self._desk.told(messages.meter, outcome.state)

    async def ReplaceMeter(self, request: pb.ReplaceMeterRequest, context: Any) -> pb.Meter:
        """Let another device, or a register that began anew, count on."""
        outcome = await self._office.replace_meter(
            await self._desk.request(request, context),
            meter_id=names.METER.id("name", request.name),
            closing_register_milli=request.closing_register_milli,
            opening_register_milli=request.opening_register_milli,
            serial=said(request, "serial"),
            unit=said(request, "unit"),
            profile=said(request, "profile"),
            ratio=said(request, "ratio"),
            max_power_w=said(request, "max_power_w"),
            reason=request.reason,
        )
        return self._desk.told(messages.meter, outcome.state)

    async def ChangeRatio(self, request: pb.ChangeRatioRequest, context: Any) -> pb.Meter:
        """Let the register count for another energy."""
        outcome = await self._office.change_ratio(
            await self._desk.request(request, context),
            names.METER.id("name", request.name),
            request.ratio,
            said(request, "register_milli"),
            request.reason,
        )
        return self._desk.told(messages.meter, outcome.state)

    async def ResolveReading(self, request: pb.ResolveReadingRequest, context: Any) -> pb.Meter:
        """Say what a held reading is."""
        command = ResolveReading(
            await self._desk.request(request, context),
            names.METER.id("name", request.name),
            request.reading_id,
            request.resolution,
            request.reason,
        )
        return self._desk.told(messages.meter, (await self._office.order(command)).state)

    async def ForceRelay(self, request: pb.ForceRelayRequest, context: Any) -> pb.Meter:
        """Let a relay be so whatever the balance, or as the balance says again."""
        command = ForceRelay(
            await self._desk.request(request, context),
            names.METER.id("name", request.name),
            request.position,
            request.reason,
        )
        return self._desk.told(messages.meter, (await self._office.order(command)).state)

    async def GetMeter(self, request: pb.GetMeterRequest, context: Any) -> pb.Meter:
        """Return a meter as the book has it now."""
        return self._desk.told(
            messages.meter, await self._office.meter(names.METER.id("name", request.name))
        )
