"""Tariffs and policies."""

# ruff: noqa: N802 - names and parameters are those of the generated servicer

from typing import Any

from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers, said
from services.vending.domain.policy import PublishPolicy
from services.vending.domain.tariff import PublishTariff
from wattvend.vending.v1 import vending_pb2 as pb


class Prices(Handlers):
    """Their methods of VendingService."""

    async def PublishTariff(self, request: pb.PublishTariffRequest, context: Any) -> pb.Tariff:
        """Publish a version of a tariff: a price, or a plan."""
        command = PublishTariff(
            await self._desk.request(request, context),
            names.TARIFF.id("name", request.name),
            request.commodity,
            request.currency,
            names.LEGAL_ENTITY.id("legal_entity", request.legal_entity),
            request.price_micro,
            said(request, "plan"),
            request.effective_at_ms,
            self._office.terms.tariff_lead_ms,
        )
        return self._desk.told(messages.tariff, (await self._office.publish_tariff(command)).state)

    async def PublishPolicy(self, request: pb.PublishPolicyRequest, context: Any) -> pb.Policy:
        """Publish a version of a policy."""
        command = PublishPolicy(
            await self._desk.request(request, context),
            names.POLICY.id("name", request.name),
            request.currency,
            request.alarm_1_minor,
            request.alarm_2_minor,
            request.overdraft_minor,
            request.restore_minor,
            request.lease_ms,
            request.max_evidence_age_ms,
            request.emergency_minor,
            said(request, "rules"),
            request.ceiling_minor,
            request.fee_ppm,
            request.fee_minor,
            names.LEGAL_ENTITY.id_if("legal_entity", request.legal_entity),
        )
        return self._desk.told(messages.policy, (await self._office.publish_policy(command)).state)
