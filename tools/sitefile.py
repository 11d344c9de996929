"""A site as a file: what stands where and what it costs. Applied through gRPC, any number of times.

Applying the same file again changes nothing, whoever does and by whatever release: what stands as
the file says is left alone. A version of a tariff or a policy is published where the newest one
says something else, by a request id that derives from what is said and what it follows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from uuid import UUID, uuid5

import yaml
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from services.common.kernel import names
from services.common.policies import rules as policy_rules
from services.common.policies.rules import Rules
from services.common.policies.windows import why_nobody_is_cut
from services.common.tariffs import plan as plans
from services.common.tariffs.plan import Plan
from tools import yamlfile
from tools.client import Clients, Refused
from wattvend.vending.v1 import vending_pb2 as v

AT_ONCE_MAX = 16
REQUESTS = UUID("3d2c5b7e-9a41-5c7b-8f7e-2f6c0f6f7a11")
"""Namespace of the request ids of files."""

LEFT_OUT: dict[str, Any] = {
    "lease_ms": 300_000,
    "max_evidence_age_ms": 900_000,
    "rounding": "down",
}
"""What vending makes of what a policy leaves out."""
NORMAL: dict[str, Callable[[str], str]] = {
    "plan": lambda text: plans.read(text).text(),
    "rules": lambda text: policy_rules.read(text).text(),
}
"""Documents that may be written in several ways, and are the same."""
GET = {
    "Site": v.GetSiteRequest,
    "Gateway": v.GetGatewayRequest,
    "Meter": v.GetMeterRequest,
    "Tariff": v.GetTariffRequest,
    "Policy": v.GetPolicyRequest,
}
WHEN = "effective_at_ms"
"""A file does not say it."""
STANDS = {"ALREADY_EXISTS", "REQUEST_ID_REUSED"}
"""Why something is not registered that may well stand as the file says."""

Progress = Callable[[str], None]
Item = TypeVar("Item")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Site(_Part):
    """The site itself. `parent`: the site that it lies within, "": none; None: as it stands."""

    id: str
    name: str
    zone: str
    currency: str
    legal_entity: str
    cuts_per_minute: int = 30
    parent: str | None = None


class Gateway(_Part):
    """How a line is reached: host:port, or product/serial on the broker."""

    id: str
    protocol: str
    address: str


class Meter(_Part):
    """A meter on a gateway. `ratio`: CT x PT. `unit`: bus address, 0 for MQTT."""

    id: str
    serial: str
    gateway: str
    unit: int = 0
    profile: str
    commodity: str = "electricity"
    ratio: int = 1
    max_power_w: int | None = None


class Tariff(_Part):
    """A price per billing unit, in 10^-6 of the currency (10^-3 for IDR, VND); or a plan."""

    id: str
    commodity: str = "electricity"
    price_micro: int | None = None
    plan: Plan | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.price_micro is None) == (self.plan is None):
            raise ValueError(f"tariff {self.id} needs price_micro or a plan, and not both")
        return self


class Terms(_Part):
    """What a policy says: thresholds in minor currency units, rules as in docs/policies.md."""

    alarm_1_minor: int
    alarm_2_minor: int
    overdraft_minor: int = 0
    restore_minor: int
    emergency_minor: int = 0
    ceiling_minor: int | None = None
    fee_ppm: int | None = None
    fee_minor: int | None = None
    rounding: Literal["down", "up", "half-even"] | None = None
    lease_ms: int | None = None
    max_evidence_age_ms: int | None = None
    rules: Rules | None = None

    @field_validator("rules")
    @classmethod
    def _let_somebody_be_cut(cls, rules: Rules | None) -> Rules | None:
        if rules is not None and (never := why_nobody_is_cut(rules)):
            raise ValueError(never)
        return rules

    def request(
        self, request_id: str, policy_id: str, currency: str, legal_entity: str
    ) -> v.PublishPolicyRequest:
        """Return what publishes them as the next version of a policy."""
        return v.PublishPolicyRequest(
            request_id=request_id,
            name=names.POLICY.name(policy_id),
            currency=currency,
            legal_entity=names.LEGAL_ENTITY.name_if(legal_entity),
            alarm_1_minor=self.alarm_1_minor,
            alarm_2_minor=self.alarm_2_minor,
            overdraft_minor=self.overdraft_minor,
            restore_minor=self.restore_minor,
            emergency_minor=self.emergency_minor,
            ceiling_minor=self.ceiling_minor or 0,
            fee_ppm=self.fee_ppm or 0,
            fee_minor=self.fee_minor or 0,
            rounding=self.rounding or "",
            lease_ms=self.lease_ms or 0,
            max_evidence_age_ms=self.max_evidence_age_ms or 0,
            rules=None if self.rules is None else self.rules.text(),
        )


class Policy(Terms):
    """A policy by its id."""

    id: str


class SiteFile(_Part):
    """All of it."""

    site: Site
    gateways: list[Gateway] = Field(default_factory=list)
    meters: list[Meter] = Field(default_factory=list)
    tariffs: list[Tariff] = Field(default_factory=list)
    policies: list[Policy] = Field(default_factory=list)


class SiteFileError(Exception):
    """The file cannot be read; says where and why."""


def read(path: Path) -> SiteFile:
    """Return the site of a YAML (or JSON) file. Raises SiteFileError."""
    try:
        return SiteFile.model_validate(yamlfile.read(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as unreadable:
        raise SiteFileError(f"{path} cannot be read: {unreadable}") from unreadable
    except ValidationError as wrong:
        places = "; ".join(
            f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
            for error in wrong.errors()
        )
        raise SiteFileError(f"{path} does not describe a site: {places}") from wrong


async def apply(clients: Clients, file: SiteFile, said: Progress) -> None:
    """Register everything, and say what is done. Raises Refused with the part's name."""
    book, site, new = _Book(clients.vending), file.site, []

    async def publish(kind: str, id_: str, request: Any) -> None:
        if await _named(f"{kind.lower()} {id_}", book.published(kind, request, site)):
            new.append(id_)

    await _named(f"site {site.id}", book.registered("Site", names.SITE.name(site.id), _site(site)))
    if site.parent is not None:
        await _named(f"site {site.id}", book.placed(site, site.parent))
    await each(
        file.gateways,
        lambda g: _named(
            f"gateway {g.id}",
            book.registered("Gateway", names.GATEWAY.name(g.id), _gateway(g, site.id)),
        ),
    )
    said(f"site {site.id} with {_counted(file.gateways, 'gateway')}")
    await each(file.tariffs, lambda t: publish("Tariff", t.id, _tariff(t, site)))
    await each(file.policies, lambda p: publish("Policy", p.id, _policy(p, site)))
    said(
        f"{_counted(file.tariffs, 'tariff')} and {_counted(file.policies, 'policy', 'policies')}, "
        f"{_counted(new, 'new version')}"
    )
    await each(
        file.meters,
        lambda m: _named(
            f"meter {m.id}", book.registered("Meter", names.METER.name(m.id), _meter(m))
        ),
    )
    said(_counted(file.meters, "meter"))


def _counted(things: Sequence[object], one: str, many: str = "") -> str:
    """Return how many things there are, in words."""
    return f"{len(things)} {one if len(things) == 1 else many or f'{one}s'}"


class _Book:
    """What is done to vending, where it does not stand so already."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def registered(self, kind: str, name: str, request: Message) -> None:
        """Let a thing be registered, unless it is, by whatever request, as it is wanted."""
        try:
            await self._call(f"Register{kind}", request)
        except Refused as refused:
            if refused.reason not in STANDS:
                raise
            wanted = [field.name for field, _ in request.ListFields()]
            stands = await self._call(f"Get{kind}", GET[kind](name=name))
            if other := _other(wanted, request, stands):
                text = f"it is registered with another {', '.join(other)}; a file changes none"
                raise Refused(refused.code, "ALREADY_EXISTS", text) from refused

    async def placed(self, site: Site, parent: str) -> None:
        """Let a site lie within another one or, "", within none."""
        stands = await self._call("GetSite", v.GetSiteRequest(name=names.SITE.name(site.id)))
        within = names.SITE.name_if(parent)
        if stands.parent == within:
            return
        request = v.PlaceSiteRequest(
            request_id=request_id("place", site.id, parent, stands.version.revision),
            name=stands.name,
            parent=within,
            reason="site file",
        )
        await self._call("PlaceSite", request)

    async def published(self, kind: str, request: Any, site: Site) -> bool:
        """Let a version be published, unless the newest one says the same; return whether."""
        revision = -1
        try:
            stands = await self._call(f"Get{kind}", GET[kind](name=request.name))
        except Refused as refused:
            if refused.reason != f"{kind.upper()}_NOT_FOUND":
                raise
        else:
            wanted = [field.name for field in request.DESCRIPTOR.fields]
            other = _other(wanted, request, stands)
            # To give a policy of an earlier release its legal entity takes two, so nobody is asked
            # for that alone: its next change says it too.
            if not other or (other == ["legal_entity"] and not stands.legal_entity):
                return False
            revision = stands.version.revision
        content = request.SerializeToString(deterministic=True).hex()
        request.request_id = request_id(kind, site.id, content, revision)
        await self._call(f"Publish{kind}", request)
        return True


def _other(wanted: Sequence[str], request: Message, stands: Message) -> list[str]:
    """Return the fields, of those that both have, in which a thing is not as a request wants it."""

    def of(message: Message, name: str) -> Any:
        value = getattr(message, name) or LEFT_OUT.get(name)
        return NORMAL[name](value) if value and name in NORMAL else value

    both = [name for name in wanted if name in stands.DESCRIPTOR.fields_by_name and name != WHEN]
    return [name for name in both if of(request, name) != of(stands, name)]


def request_id(*parts: object) -> str:
    """Return the request id of one part of a file."""
    return str(uuid5(REQUESTS, "\x00".join(str(part) for part in parts)))


def _site(site: Site) -> v.RegisterSiteRequest:
    return v.RegisterSiteRequest(
        request_id=request_id("site", site.model_dump_json(exclude={"parent"})),
        site_id=site.id,
        display_name=site.name,
        zone=site.zone,
        currency=site.currency,
        legal_entity=names.LEGAL_ENTITY.name(site.legal_entity),
        cuts_per_minute=site.cuts_per_minute,
    )


def _gateway(gateway: Gateway, site_id: str) -> v.RegisterGatewayRequest:
    return v.RegisterGatewayRequest(
        request_id=request_id("gateway", site_id, gateway.model_dump_json()),
        gateway_id=gateway.id,
        site=names.SITE.name(site_id),
        protocol=gateway.protocol,
        address=gateway.address,
    )


def _meter(meter: Meter) -> v.RegisterMeterRequest:
    return v.RegisterMeterRequest(
        request_id=request_id("meter", meter.model_dump_json()),
        meter_id=meter.id,
        serial=meter.serial,
        gateway=names.GATEWAY.name(meter.gateway),
        unit=meter.unit,
        profile=meter.profile,
        commodity=meter.commodity,
        ratio=meter.ratio,
        max_power_w=meter.max_power_w,
    )


def _tariff(tariff: Tariff, site: Site) -> v.PublishTariffRequest:
    return v.PublishTariffRequest(
        name=names.TARIFF.name(tariff.id),
        commodity=tariff.commodity,
        currency=site.currency,
        legal_entity=names.LEGAL_ENTITY.name(site.legal_entity),
        price_micro=tariff.price_micro or 0,
        plan=None if tariff.plan is None else tariff.plan.text(),
    )


def _policy(policy: Policy, site: Site) -> v.PublishPolicyRequest:
    return policy.request("", policy.id, site.currency, site.legal_entity)


async def _named(what: str, answer: Awaitable[Item]) -> Item:
    try:
        return await answer
    except Refused as refused:
        raise Refused(refused.code, refused.reason, f"{what}: {refused.message}") from refused


async def each(items: Sequence[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Do `work` with every item, a bounded number at once."""
    bound = asyncio.Semaphore(AT_ONCE_MAX)

    async def one(item: Item) -> None:
        async with bound:
            await work(item)

    await asyncio.gather(*(one(item) for item in items))
