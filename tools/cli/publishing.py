"""`wattvend tariff`, `wattvend policy`: check one, draft or publish a version, look at versions."""

from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import uuid4
from zoneinfo import ZoneInfo

import typer

from services.common.kernel import names, units
from tools.cli import affected, documents, explained, plans, policies, show
from tools.cli.asking import RequestId, instant_ms, out, run, say_refused
from tools.client import Clients, Refused
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import documents_pb2 as d
from wattvend.vending.v1 import vending_pb2 as v

PREVIEW_TIMEOUT_S = 600.0
"""A year of a thousand accounts takes minutes."""

tariff_app = typer.Typer(
    no_args_is_help=True, help="Tariffs: check a plan, draft or publish a version."
)
policy_app = typer.Typer(
    no_args_is_help=True, help="Policies: check one, draft or publish a version."
)
Currency = Annotated[str, typer.Option(help="ISO 4217")]
Replaces = Annotated[str, typer.Option(help="id of the document that this one replaces")]
PlanFile = Annotated[Path, typer.Argument(help="YAML or JSON, as docs/tariffs.md says")]


@tariff_app.command("check")
def tariff_check(file: PlanFile, currency: Currency = "CNY") -> None:
    """Show what a plan charges, or what is wrong with it. Nothing is sent."""
    try:
        found = plans.read(file)
        out.print(plans.show(found, _known(currency).price_decimals))
    except Refused as refused:
        say_refused(refused)
        raise SystemExit(1) from None


TariffId = Annotated[str, typer.Argument(help="id of the tariff")]
Seller = Annotated[str, typer.Option(help="who sells")]
Effective = Annotated[
    str, typer.Option(help="wall clock of the plan's zone, e.g. '2027-01-01 00:00'")
]


def _tariff(  # noqa: PLR0917 - what a person said of it
    request_id: str,
    tariff: str,
    file: Path,
    legal_entity: str,
    currency: str,
    commodity: str,
    effective: str,
) -> v.PublishTariffRequest:
    """Return what publishes a plan's file. Raises Refused where it has none."""
    plan = plans.read(file)
    return v.PublishTariffRequest(
        request_id=request_id,
        name=names.TARIFF.name(tariff),
        commodity=commodity,
        currency=currency,
        legal_entity=names.LEGAL_ENTITY.name(legal_entity),
        plan=plan.text(),
        effective_at_ms=_local_ms(effective, plan.zone) if effective else 0,
    )


@tariff_app.command("publish")
def tariff_publish(  # noqa: PLR0917 - a command line is parsed by name
    tariff: TariffId,
    file: PlanFile,
    legal_entity: Seller,
    currency: Currency = "CNY",
    commodity: str = "electricity",
    effective: Effective = "",
    request_id: RequestId = "",
) -> None:
    """Publish a plan as the next version of a tariff; without --effective as early as may be."""
    request = request_id or str(uuid4())

    async def work(clients: Clients) -> v.Tariff:
        said = _tariff(request, tariff, file, legal_entity, currency, commodity, effective)
        answer: v.Tariff = await clients.vending("PublishTariff", said)
        return answer

    run(work, show.tariff, request)


@tariff_app.command("draft")
def tariff_draft(  # noqa: PLR0917 - a command line is parsed by name
    tariff: TariffId,
    file: PlanFile,
    legal_entity: Seller,
    currency: Currency = "CNY",
    commodity: str = "electricity",
    effective: Effective = "",
    replaces: Replaces = "",
    request_id: RequestId = "",
) -> None:
    """Put the next version of a tariff on paper; nothing applies before it is submitted."""
    request = request_id or str(uuid4())

    async def work(clients: Clients) -> d.Document:
        said = _tariff("", tariff, file, legal_entity, currency, commodity, effective)
        return await _drafted(clients, request, d.Document(tariff=said), replaces)

    run(work, documents.show_document, request)


async def _drafted(
    clients: Clients, request_id: str, document: d.Document, replaces: str
) -> d.Document:
    document.replaces = names.DOCUMENT.name_if(replaces)
    answer: d.Document = await clients.documents(
        "CreateDocument", d.CreateDocumentRequest(request_id=request_id, document=document)
    )
    return answer


@tariff_app.command("show")
def tariff_show(tariff: Annotated[str, typer.Argument(help="id of the tariff")]) -> None:
    """Show the newest version of a tariff."""
    request = v.GetTariffRequest(name=names.TARIFF.name(tariff))
    run(lambda clients: clients.vending("GetTariff", request), show.tariff)


@tariff_app.command("versions")
def tariff_versions(tariff: TariffId) -> None:
    """List the versions of a tariff: which is in force, which is scheduled."""
    documents.list_versions(names.TARIFF.name(tariff))


tariff_app.command("adjust")(affected.adjust)


@tariff_app.command("what-if")
def tariff_what_if(  # noqa: PLR0917 - a command line is parsed by name
    file: PlanFile,
    begin: Annotated[str, typer.Option("--from", help="wall clock of the plan's zone")],
    end: Annotated[str, typer.Option("--to", help="that of the end, e.g. '2027-01-01 00:00'")],
    account: Annotated[list[str], typer.Option(help="an account; may be repeated")] = [],  # noqa: B006
    site: Annotated[str, typer.Option(help="accounts of this site")] = "",
    tariff: Annotated[str, typer.Option(help="accounts that are on this tariff now")] = "",
) -> None:
    """Show what a plan would have charged for what was recorded. Nothing changes."""

    async def work(clients: Clients) -> r.TariffPreview:
        plan = plans.read(file)
        answer: r.TariffPreview = await clients.reporting(
            "PreviewTariff",
            r.PreviewTariffRequest(
                plan=plan.text(),
                from_ms=_local_ms(begin, plan.zone),
                to_ms=_local_ms(end, plan.zone),
                accounts=map(names.ACCOUNT.name, account),
                site=names.SITE.name_if(site),
                tariff=names.TARIFF.name_if(tariff),
            ),
            timeout_s=PREVIEW_TIMEOUT_S,
        )
        return answer

    run(work, explained.preview)


PolicyFile = Annotated[Path, typer.Argument(help="YAML or JSON, as docs/policies.md says")]


@policy_app.command("check")
def policy_check(file: PolicyFile, currency: Currency = "CNY") -> None:
    """Show what a policy says, or what is wrong with it. Nothing is sent."""
    try:
        out.print(policies.show(policies.read(file), _known(currency)))
    except Refused as refused:
        say_refused(refused)
        raise SystemExit(1) from None


PolicyId = Annotated[str, typer.Argument(help="id of the policy")]
Whose = Annotated[str, typer.Option(help="whose accounts may use it")]
Then = Annotated[str, typer.Option("--effective", help="this terminal's clock; default: at once")]


def _policy(  # noqa: PLR0917 - what a person said of it
    request_id: str, policy: str, file: Path, legal_entity: str, currency: str, at_ms: int
) -> v.PublishPolicyRequest:
    """Return what publishes a policy's file. Raises Refused where it has none."""
    said = policies.read(file).request(request_id, policy, currency, legal_entity)
    said.effective_at_ms = at_ms
    return said


@policy_app.command("publish")
def policy_publish(  # noqa: PLR0917 - a command line is parsed by name
    policy: PolicyId,
    file: PolicyFile,
    legal_entity: Whose,
    currency: Currency = "CNY",
    effective: Then = "",
    request_id: RequestId = "",
) -> None:
    """Publish the next version of a policy, which by itself cuts nobody; show what is in force."""
    request = request_id or str(uuid4())
    at_ms = instant_ms(effective) if effective else 0

    async def work(clients: Clients) -> v.Policy:
        said = _policy(request, policy, file, legal_entity, currency, at_ms)
        answer: v.Policy = await clients.vending("PublishPolicy", said)
        return answer

    run(work, show.policy, request)


@policy_app.command("draft")
def policy_draft(  # noqa: PLR0917 - a command line is parsed by name
    policy: PolicyId,
    file: PolicyFile,
    legal_entity: Whose,
    currency: Currency = "CNY",
    effective: Then = "",
    replaces: Replaces = "",
    request_id: RequestId = "",
) -> None:
    """Put the next version of a policy on paper; nothing applies before it is submitted."""
    request = request_id or str(uuid4())
    at_ms = instant_ms(effective) if effective else 0

    async def work(clients: Clients) -> d.Document:
        said = _policy("", policy, file, legal_entity, currency, at_ms)
        return await _drafted(clients, request, d.Document(policy=said), replaces)

    run(work, documents.show_document, request)


@policy_app.command("show")
def policy_show(policy: Annotated[str, typer.Argument(help="id of the policy")]) -> None:
    """Show the newest version of a policy."""
    request = v.GetPolicyRequest(name=names.POLICY.name(policy))
    run(lambda clients: clients.vending("GetPolicy", request), show.policy)


@policy_app.command("versions")
def policy_versions(policy: PolicyId) -> None:
    """List the versions of a policy: which is in force, which is scheduled."""
    documents.list_versions(names.POLICY.name(policy))


def _known(currency: str) -> units.Currency:
    """Return a currency of the catalogue. Raises Refused."""
    found = units.CURRENCIES.get(currency)
    if found is None:
        known = ", ".join(units.CURRENCIES)
        message = f"the currency {currency!r} is unknown; known are {known}"
        raise Refused("INVALID_ARGUMENT", "CURRENCY_UNKNOWN", message)
    return found


def _local_ms(text: str, zone: str) -> int:
    """Return a wall clock's time in a zone as ms UTC. Raises Refused where it is none."""
    try:
        local = datetime.fromisoformat(text)
    except ValueError:
        local = None
    if local is None or local.tzinfo is not None:
        message = f"{text!r} is no wall clock's time; write e.g. '2027-01-01 00:00'"
        raise Refused("INVALID_ARGUMENT", "INVALID_ARGUMENT", message)
    return int(local.replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1000
