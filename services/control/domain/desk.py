"""Control's whole state, and one step of it for each input.

The desk routes inputs to the deliveries they concern and looks at each of those again at once;
what only time can change waits in a heap of instants. It is deterministic and knows no clock: the
shell passes the instant in. State is kept by partition of relay-intents and relay-states, so that
it can be dropped with a partition; nothing acts in a partition before `begin`.
"""

import heapq
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping

from services.common.kernel.profiles import Profile
from services.common.kernel.values import value_class
from services.control.domain import delivery as rules
from services.control.domain.brake import Brake
from services.control.domain.delivery import Delivery, Limits
from services.control.domain.messages import (
    Action,
    Command,
    DeviceStatus,
    Fact,
    Gateway,
    Intent,
    LineRequest,
    Meter,
    Outcome,
    RelayState,
    Reply,
    Result,
    Site,
)
from services.control.domain.turn import Scene, advance

REPLIES_KEPT_MAX = 10_000
"""Replies that no command waits for are kept for a while: after a restart, or when a partition
moves, the reply to a command under way may have been read before the command was known."""


UNSENT = "unsent"
"""The result of a command that did not leave control."""


@value_class
class Act:
    """One action, and the partition in whose name it is done: it is void once that is dropped."""

    partition: int
    generation: int
    action: Action


@value_class
class Place:
    """Where a delivery is kept."""

    partition: int
    meter_id: str


class Desk:
    """Deliveries of all meters in the partitions held, and the facts around them."""

    def __init__(self, profiles: Mapping[str, Profile], limits: Limits) -> None:
        self._profiles = profiles
        self._limits = limits
        self._deliveries: dict[int, dict[str, Delivery]] = {}
        self._generation: dict[int, int] = {}
        self._generations = 0
        self._meters: dict[str, Meter] = {}
        self._gateways: dict[str, Gateway] = {}
        self._sites: dict[str, Site] = {}
        self._statuses: dict[str, DeviceStatus] = {}
        self._meters_of_gateway: dict[str, set[str]] = defaultdict(set)
        self._meters_of_site: dict[str, set[str]] = defaultdict(set)
        self._flights: dict[str, Place] = {}
        self._stray_replies: OrderedDict[str, Reply] = OrderedDict()
        self._due: list[tuple[int, int, int, str]] = []
        self._due_at: dict[Place, int] = {}
        self._brake = Brake()

    # -- partitions

    def open(self, partition: int) -> None:
        """Start to gather a partition's state; nothing acts in it yet."""
        self._deliveries[partition] = {}

    def begin(self, partition: int, now_ms: int) -> list[Act]:
        """Act from now on: the partition has been read to its end."""
        self._generations += 1
        self._generation[partition] = self._generations
        acts: list[Act] = []
        for meter_id, found in list(self._deliveries[partition].items()):
            place = Place(partition, meter_id)
            delivery = rules.resumed(found, self._limits, now_ms)
            self._deliveries[partition][meter_id] = delivery
            self._follow(place, Delivery(), delivery)
            awaited = delivery.flight.request_id if delivery.flight else ""
            if awaited in self._flights and (reply := self._stray_replies.get(awaited)):
                acts += self.answer(reply, now_ms)
            else:
                acts += self._look(place, now_ms)
        return acts

    def drop(self, partition: int) -> None:
        """Forget a partition: another worker acts for it."""
        self._generation.pop(partition, None)
        for meter_id in self._deliveries.pop(partition, {}):
            self._due_at.pop(Place(partition, meter_id), None)
        self._flights = {
            request_id: place
            for request_id, place in self._flights.items()
            if place.partition != partition
        }

    def acts_for(self, act: Act) -> bool:
        """Whether an action decided earlier may still be done."""
        return self._generation.get(act.partition) == act.generation

    # -- inputs

    def hear(self, partition: int, heard: Intent | RelayState | Outcome, now_ms: int) -> list[Act]:
        """Take a record of relay-intents or relay-states, or, before `begin`, of command-outcomes.

        Records of a partition that is not held change nothing.
        """
        deliveries = self._deliveries.get(partition)
        if deliveries is None:
            return []
        meter_id = heard.intent.meter_id if isinstance(heard, Outcome) else heard.meter_id
        place = Place(partition, meter_id)
        before = deliveries.get(meter_id, Delivery())
        told: tuple[Action, ...] = ()
        match heard:
            case Intent():
                after, told = rules.heard_intent(before, heard, now_ms)
                self._meters_of_site[heard.site_id].add(meter_id)
            case RelayState():
                after = rules.heard_state(before, heard)
            case Outcome():
                after = rules.heard_past(before, heard, self._limits)
                self._count_cut(heard)
        deliveries[meter_id] = after
        if partition not in self._generation:
            return []
        return self._signed(partition, told) + self._look(place, now_ms)

    def learn(self, fact: Fact, now_ms: int) -> list[Act]:
        """Take a fact of the registry or a device's status; judge each meter it concerns again.

        Of registry facts the highest version stands.
        """
        match fact:
            case Meter(meter_id=meter_id):
                if not _is_newer(fact.version, self._meters.get(meter_id)):
                    return []
                self._meters[meter_id] = fact
                self._meters_of_gateway[fact.gateway_id].add(meter_id)
                concerned = {meter_id}
            case Gateway(gateway_id=gateway_id):
                if not _is_newer(fact.version, self._gateways.get(gateway_id)):
                    return []
                self._gateways[gateway_id] = fact
                concerned = self._meters_of_gateway[gateway_id]
            case Site(site_id=site_id):
                if not _is_newer(fact.version, self._sites.get(site_id)):
                    return []
                self._sites[site_id] = fact
                concerned = self._meters_of_site[site_id]
            case DeviceStatus(device_id=device_id):
                kind, _, name = device_id.partition("/")
                if kind not in ("meters", "gateways"):
                    return []  # nobody registered it: anybody may name any number of those
                # A device that moves to another line has records in two partitions.
                known = self._statuses.get(device_id)
                if known is not None and fact.since_ms < known.since_ms:
                    return []
                self._statuses[device_id] = fact
                concerned = {name} if kind == "meters" else self._meters_of_gateway[name]
        return self._look_at(concerned, now_ms)

    def answer(self, reply: Reply, now_ms: int) -> list[Act]:
        """Take a device's reply, or what the shell found out about a command it could not send."""
        place = self._flights.get(reply.request_id)
        if place is None:
            self._stray_replies[reply.request_id] = reply
            if len(self._stray_replies) > REPLIES_KEPT_MAX:
                self._stray_replies.popitem(last=False)
            return []
        before = self._deliveries[place.partition][place.meter_id]
        after, told = rules.heard_reply(before, reply, self._limits, now_ms)
        self._deliveries[place.partition][place.meter_id] = after
        return self._signed(place.partition, told) + self._look(place, now_ms)

    def tick(self, now_ms: int) -> list[Act]:
        """Look at every delivery whose instant has come, the oldest decision first."""
        due: list[tuple[int, Place]] = []
        while self._due and self._due[0][0] <= now_ms:
            at_ms, decided_at_ms, partition, meter_id = heapq.heappop(self._due)
            place = Place(partition, meter_id)
            if self._due_at.get(place) == at_ms:
                del self._due_at[place]
                due.append((decided_at_ms, place))
        acts: list[Act] = []
        for _, place in sorted(due, key=lambda entry: (entry[0], entry[1].meter_id)):
            acts += self._look(place, now_ms)
        return acts

    def leaving(self, acts: Iterable[Act], now_ms: int) -> tuple[list[Command], list[Act]]:
        """Return the commands among `acts` that may still leave, and what follows for the others.

        Asked just before sending: while a command waited for its `sent` to be acknowledged, its
        time may have gone, somebody may have paid, or an operator may have held the cuts.
        """
        commands: list[Command] = []
        more: list[Act] = []
        for act in acts:
            command = act.action
            if isinstance(command, Outcome) or not self.acts_for(act):
                continue
            if (why := self._objection(act.partition, command, now_ms)) is None:
                commands.append(command)
            else:
                unsent = Reply(command.request_id, UNSENT, why, now_ms, now_ms)
                more += self.answer(unsent, now_ms)
        return commands, more

    # -- for metrics and tests

    def waiting_count(self) -> int:
        """Return how many intents are not settled."""
        return sum(
            not delivery.is_settled
            for deliveries in self._deliveries.values()
            for delivery in deliveries.values()
        )

    def cuts_used(self, now_ms: int) -> dict[str, int]:
        """Return site → cuts sent within the last minute, for the sites known."""
        return {site_id: self._brake.used(site_id, now_ms) for site_id in self._sites}

    def delivery(self, partition: int, meter_id: str) -> Delivery:
        """Return what is known of a meter."""
        return self._deliveries[partition].get(meter_id, Delivery())

    # -- inside

    def _count_cut(self, told: Outcome) -> None:
        """Count a cut that is sent, or was before a restart: that does not refill a budget.

        What the bus holds is not ours alone: an outcome that names no command counts for nothing.
        """
        if told.result is not Result.SENT or not told.intent.is_cut:
            return
        if told.request_id is not None and told.commanded_at_ms is not None:
            self._brake.count(told.intent.site_id, told.request_id, told.commanded_at_ms)

    def _objection(self, partition: int, command: Command, now_ms: int) -> str | None:
        """Return why a command may not leave any more, or None."""
        if now_ms > command.not_after_ms:
            return "its time was over before it left"
        if isinstance(command, LineRequest) and command.address is None:
            return None
        newest = self._deliveries[partition][command.intent.meter_id].intent
        if newest is not None and newest.command is not command.intent.command:
            return f"a newer intent wants {newest.wanted}"
        meter = self._meters.get(command.intent.meter_id)
        if meter is None or (meter.epoch, meter.line_id) != _bound_for(command.intent):
            return "the meter was assigned or moved"
        site = self._sites.get(command.intent.site_id)
        if command.intent.is_cut and (site is None or site.cuts_held):
            return "all cuts of the site are held"
        return None

    def _look_at(self, meter_ids: Iterable[str], now_ms: int) -> list[Act]:
        acts: list[Act] = []
        for partition, deliveries in self._deliveries.items():
            concerned = [meter_id for meter_id in meter_ids if meter_id in deliveries]
            for meter_id in sorted(concerned, key=_oldest_first(deliveries)):
                acts += self._look(Place(partition, meter_id), now_ms)
        return acts

    def _look(self, place: Place, now_ms: int) -> list[Act]:
        if place.partition not in self._generation:
            return []
        before = self._deliveries[place.partition][place.meter_id]
        advanced = advance(before, self._scene(place.meter_id, before, now_ms), now_ms)
        after = advanced.delivery
        self._deliveries[place.partition][place.meter_id] = after
        self._follow(place, before, after)
        for action in advanced.actions:
            if isinstance(action, Outcome):
                self._count_cut(action)
        if advanced.due_ms is None:
            self._due_at.pop(place, None)
        elif self._due_at.get(place) != advanced.due_ms:
            decided_at_ms = after.intent.decided_at_ms if after.intent else 0
            self._due_at[place] = advanced.due_ms
            entry = (advanced.due_ms, decided_at_ms, place.partition, place.meter_id)
            heapq.heappush(self._due, entry)
        return self._signed(place.partition, advanced.actions)

    def _follow(self, place: Place, before: Delivery, after: Delivery) -> None:
        """Keep the index of awaited replies in step with the command under way."""
        for flight in (before.flight, after.flight):
            if flight is not None:
                self._flights.pop(flight.request_id, None)
                self._flights.pop(flight.read_id or "", None)
        if (flight := after.flight) is not None:
            awaited = flight.request_id if flight.completed_at_ms is None else flight.read_id
            if awaited is not None:
                self._flights[awaited] = place

    def _scene(self, meter_id: str, delivery: Delivery, now_ms: int) -> Scene:
        meter = self._meters.get(meter_id)
        gateway_id = meter.gateway_id if meter else ""
        intent = delivery.intent
        site = self._sites.get(intent.site_id) if intent else None
        free_at_ms = now_ms
        if site is not None and intent is not None and intent.is_cut:
            budget_count = site.cuts_per_minute
            free_at_ms = self._brake.free_at_ms(site.site_id, budget_count, now_ms)
        return Scene(
            self._limits,
            meter,
            self._gateways.get(gateway_id),
            site,
            self._profiles.get(meter.profile) if meter else None,
            self._statuses.get(f"meters/{meter_id}"),
            self._statuses.get(f"gateways/{gateway_id}"),
            free_at_ms,
        )

    def _signed(self, partition: int, actions: Iterable[Action]) -> list[Act]:
        generation = self._generation[partition]
        return [Act(partition, generation, action) for action in actions]


def _is_newer(version: tuple[int, int], known: Meter | Gateway | Site | None) -> bool:
    return known is None or version > known.version


def _bound_for(intent: Intent) -> tuple[int, str]:
    return intent.epoch, intent.line_id


def _oldest_first(deliveries: Mapping[str, Delivery]) -> Callable[[str], tuple[int, str]]:
    def decided(meter_id: str) -> tuple[int, str]:
        intent = deliveries[meter_id].intent
        return (intent.decided_at_ms if intent else 0, meter_id)

    return decided
