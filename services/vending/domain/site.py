"""A site: where meters hang; its zone, currency, legal entity, and the brake on cuts."""

from services.common.kernel.errors import Bug
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.kernel.zones import zone_named
from services.vending.domain import checks
from services.vending.domain.decisions import (
    Accepted,
    Answers,
    Decision,
    Rejection,
    Request,
    answered,
    changed,
    stamp,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.sites import CutsHeld, CutsReleased, SitePlaced, SiteRegistered

CUTS_PER_MINUTE_MAX = 10_000
DEPTH_MAX = 16
"""Sites within another: group, property, building, floor, with room."""


@value_class
class Site:
    """The folded stream of a site."""

    answers: Answers
    site_id: str
    display_name: str
    zone: str
    currency: str
    ledger_decimals: int
    minor_decimals: int
    legal_entity: str
    cuts_per_minute: int
    cuts_held: bool = False
    parent_site_id: str | None = None


@value_class
class RegisterSite:
    """A site shall exist. `zone` IANA, `currency` ISO 4217, `cuts_per_minute` > 0."""

    request: Request
    site_id: str
    display_name: str
    zone: str
    currency: str
    legal_entity: str
    cuts_per_minute: int

    def __post_init__(self) -> None:
        """Refuse what no site can be."""
        checks.check_id("site_id", self.site_id)
        checks.check_text("display_name", self.display_name)
        checks.check_legal_entity(self.legal_entity)
        checks.check_between("cuts_per_minute", self.cuts_per_minute, 1, CUTS_PER_MINUTE_MAX)
        checks.currency_named(self.currency)
        zone_named(self.zone)


@value_class
class _AboutCuts:
    """What a person says of a site's cuts."""

    request: Request
    site_id: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("site_id", self.site_id)
        checks.check_text("reason", self.reason)


@value_class
class HoldCuts(_AboutCuts):
    """No cut shall be sent at the site until released."""


@value_class
class ReleaseCuts(_AboutCuts):
    """Cuts may be sent again."""


@value_class
class PlaceSite:
    """The site shall lie within another one; `parent_site_id` None: within none.

    `above`: the parent, if it is there, and what it lies within, the nearest first.
    """

    request: Request
    site_id: str
    parent_site_id: str | None
    reason: str
    above: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("site_id", self.site_id)
        if self.parent_site_id is not None:
            checks.check_id("parent", self.parent_site_id)
        checks.check_text("reason", self.reason)


def site_not_found(site_id: str) -> Rejection:
    """Return the refusal of a command on a site that is not there."""
    return Rejection(
        Reason.SITE_NOT_FOUND, f"there is no site {site_id!r}; register it first", "site_id"
    )


def decide(
    state: Site | None, command: RegisterSite | HoldCuts | ReleaseCuts | PlaceSite
) -> Decision:
    """Return what a command does to a site, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, RegisterSite):
        if state:
            return Rejection(
                Reason.ALREADY_EXISTS,
                f"site {command.site_id} is registered already; choose another site_id",
                "site_id",
            )
        return _register(command)
    if state is None:
        return site_not_found(command.site_id)
    if isinstance(command, PlaceSite):
        return _place(state, command)
    return _hold(state, command) if isinstance(command, HoldCuts) else _release(state, command)


def _place(state: Site, command: PlaceSite) -> Decision:
    parent_id = command.parent_site_id
    if parent_id == state.parent_site_id:
        where = f"within {parent_id}" if parent_id else "within no other"
        text = f"site {state.site_id} lies {where} already; nothing is to do"
        return Rejection(Reason.NOTHING_CHANGES, text, "parent")
    if parent_id is not None:
        if parent_id not in command.above:
            return Rejection(
                Reason.SITE_NOT_FOUND,
                f"there is no site {parent_id!r}; register it first",
                "parent",
            )
        if state.site_id in (parent_id, *command.above):
            text = f"site {parent_id} lies within {state.site_id} itself; choose another parent"
            return Rejection(Reason.SITE_WITHIN_ITSELF, text, "parent")
        if len(command.above) > DEPTH_MAX:
            text = f"site {parent_id} lies {DEPTH_MAX} deep; choose one further up"
            return Rejection(Reason.INVALID_ARGUMENT, text, "parent")
    placed = SitePlaced(
        **stamp(command.request),
        site_id=state.site_id,
        parent_site_id=parent_id,
        reason=command.reason,
    )
    return Accepted((placed,))


def _hold(state: Site, command: HoldCuts) -> Decision:
    if state.cuts_held:
        return Rejection(
            Reason.CUTS_ALREADY_HELD, f"cuts at {state.site_id} are held; nothing is to do"
        )
    held = CutsHeld(**stamp(command.request), site_id=state.site_id, reason=command.reason)
    return Accepted((held,))


def _release(state: Site, command: ReleaseCuts) -> Decision:
    if not state.cuts_held:
        return Rejection(
            Reason.CUTS_NOT_HELD, f"cuts at {state.site_id} are not held; nothing is to do"
        )
    released = CutsReleased(**stamp(command.request), site_id=state.site_id, reason=command.reason)
    return Accepted((released,))


def _register(command: RegisterSite) -> Accepted:
    currency = checks.currency_named(command.currency)
    return Accepted(
        (
            SiteRegistered(
                **stamp(command.request),
                site_id=command.site_id,
                display_name=command.display_name,
                zone=command.zone,
                currency=currency.code,
                ledger_decimals=currency.ledger_decimals,
                minor_decimals=currency.minor_decimals,
                legal_entity=command.legal_entity,
                cuts_per_minute=command.cuts_per_minute,
            ),
        )
    )


def evolve(state: Site | None, event: Event) -> Site:
    """Return the site after an event of its stream."""
    match state, event:
        case None, SiteRegistered():
            return Site(
                Answers().after(event),
                event.site_id,
                event.display_name,
                event.zone,
                event.currency,
                event.ledger_decimals,
                event.minor_decimals,
                event.legal_entity,
                event.cuts_per_minute,
            )
        case Site(), CutsHeld():
            return changed(state, answers=state.answers.after(event), cuts_held=True)
        case Site(), SitePlaced():
            answers = state.answers.after(event)
            return changed(state, answers=answers, parent_site_id=event.parent_site_id)
        case Site(), CutsReleased():
            return changed(state, answers=state.answers.after(event), cuts_held=False)
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into a site's stream here")
