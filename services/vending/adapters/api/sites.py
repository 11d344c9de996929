"""Sites and gateways."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers
from services.vending.domain.gateway import Gateway, gateway_not_found
from services.vending.domain.site import (
    HoldCuts,
    PlaceSite,
    RegisterSite,
    ReleaseCuts,
    Site,
    site_not_found,
)
from wattvend.vending.v1 import vending_pb2 as pb


class Sites(Handlers):
    """Their methods of VendingService."""

    async def RegisterSite(self, request: pb.RegisterSiteRequest, context: Any) -> pb.Site:
        """Let a site exist."""
        command = RegisterSite(
            await self._desk.request(request, context),
            request.site_id,
            request.display_name,
            request.zone,
            request.currency,
            names.LEGAL_ENTITY.id("legal_entity", request.legal_entity),
            request.cuts_per_minute,
        )
        return self._desk.told(messages.site, (await self._office.register_site(command)).state)

    async def PlaceSite(self, request: pb.PlaceSiteRequest, context: Any) -> pb.Site:
        """Let a site lie within another one, or within none."""
        command = PlaceSite(
            await self._desk.request(request, context),
            names.SITE.id("name", request.name),
            names.SITE.id_if("parent", request.parent) or None,
            request.reason,
        )
        return self._desk.told(messages.site, (await self._office.place_site(command)).state)

    async def HoldCuts(self, request: pb.HoldCutsRequest, context: Any) -> pb.Site:
        """Hold the cuts of a site."""
        command = HoldCuts(
            await self._desk.request(request, context),
            names.SITE.id("name", request.name),
            request.reason,
        )
        return self._desk.told(messages.site, (await self._office.hold_cuts(command)).state)

    async def ReleaseCuts(self, request: pb.ReleaseCutsRequest, context: Any) -> pb.Site:
        """Let cuts of a site be sent again."""
        command = ReleaseCuts(
            await self._desk.request(request, context),
            names.SITE.id("name", request.name),
            request.reason,
        )
        return self._desk.told(messages.site, (await self._office.release_cuts(command)).state)

    async def RegisterGateway(self, request: pb.RegisterGatewayRequest, context: Any) -> pb.Gateway:
        """Let a gateway exist."""
        outcome = await self._office.register_gateway(
            await self._desk.request(request, context),
            request.gateway_id,
            names.SITE.id("site", request.site),
            request.protocol,
            request.address,
        )
        return self._desk.told(messages.gateway, outcome.state)

    async def GetSite(self, request: pb.GetSiteRequest, context: Any) -> pb.Site:
        """Return a site as the book has it now."""
        site_id = names.SITE.id("name", request.name)
        return self._desk.told(
            messages.site, await self._office.known(Site, site_id, site_not_found)
        )

    async def GetGateway(self, request: pb.GetGatewayRequest, context: Any) -> pb.Gateway:
        """Return a gateway as the book has it now."""
        gateway_id = names.GATEWAY.id("name", request.name)
        return self._desk.told(
            messages.gateway, await self._office.known(Gateway, gateway_id, gateway_not_found)
        )
