"""Tariffs and policies."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers, said
from services.vending.domain.decisions import Request
from services.vending.domain.policy import Policy, PublishPolicy, policy_not_found
from services.vending.domain.tariff import PublishTariff, Tariff, tariff_not_found
from wattvend.vending.v1 import vending_pb2 as pb


class Prices(Handlers):
    """Their methods of VendingService."""

    async def PublishTariff(self, request: pb.PublishTariffRequest, context: Any) -> pb.Tariff:
        """Publish a version of a tariff: a price, or a plan."""
        asked = await self._desk.request(request, context)
        command = tariff_of(request, asked, self._office.terms.tariff_lead_ms)
        return self._desk.told(messages.tariff, (await self._office.publish_tariff(command)).state)

    async def PublishPolicy(self, request: pb.PublishPolicyRequest, context: Any) -> pb.Policy:
        """Publish a version of a policy."""
        command = policy_of(request, await self._desk.request(request, context))
        return self._desk.told(messages.policy, (await self._office.publish_policy(command)).state)

    async def GetTariff(self, request: pb.GetTariffRequest, context: Any) -> pb.Tariff:
        """Return the newest version of a tariff."""
        tariff_id = names.TARIFF.id("name", request.name)
        return self._desk.told(
            messages.tariff, await self._office.known(Tariff, tariff_id, tariff_not_found)
        )

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.Policy:
        """Return the newest version of a policy."""
        policy_id = names.POLICY.id("name", request.name)
        return self._desk.told(
            messages.policy, await self._office.known(Policy, policy_id, policy_not_found)
        )


def tariff_of(message: pb.PublishTariffRequest, request: Request, lead_ms: int) -> PublishTariff:
    """Return what a message wants to be published. Raises InvalidInput."""
    return PublishTariff(
        request,
        names.TARIFF.id("name", message.name),
        message.commodity,
        message.currency,
        names.LEGAL_ENTITY.id("legal_entity", message.legal_entity),
        message.price_micro,
        said(message, "plan"),
        message.effective_at_ms,
        lead_ms,
    )


def policy_of(message: pb.PublishPolicyRequest, request: Request) -> PublishPolicy:
    """Return what a message wants to be published. Raises InvalidInput."""
    return PublishPolicy(
        request,
        names.POLICY.id("name", message.name),
        message.currency,
        message.alarm_1_minor,
        message.alarm_2_minor,
        message.overdraft_minor,
        message.restore_minor,
        message.lease_ms,
        message.max_evidence_age_ms,
        message.emergency_minor,
        said(message, "rules"),
        message.ceiling_minor,
        message.fee_ppm,
        message.fee_minor,
        names.LEGAL_ENTITY.id_if("legal_entity", message.legal_entity),
        message.rounding,
        effective_at_ms=message.effective_at_ms,
    )
