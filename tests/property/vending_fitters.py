"""What fitters do in the town: meters go to and fro, are replaced and read, cut and restored."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from services.vending.domain.tables import Charged
from tests.property.vending_paper import AS_CHARGED, SWITCHING, Ask
from tests.property.vending_town import METERS, MINUTE_MS, PERSONS, Beside, another_than, of_town

TURNED_MILLI = 15
"""What a meter shows more when somebody looks at it."""
BELOW_MILLI = 20


class Fitters(Beside):
    """Three persons who do with meters what may be done with them, and read them."""

    accounts: Any = of_town(lambda town: [*town.open_ones() * 3, *town.clerk.status])
    persons = st.sampled_from(PERSONS)
    some_meter = st.sampled_from(METERS)
    held_meter: Any = of_town(lambda town: [*town.held() * 3, *METERS])
    idle_meter: Any = of_town(lambda town: [*sorted({*METERS} - {*town.held()}) * 2, *METERS])
    registers = st.sampled_from(["shown", "shown", "charged", "below"])

    def open_ones(self) -> list[str]:
        return [name for name, status in self.clerk.status.items() if status == "open"]

    def held(self) -> list[str]:
        return [meter_id for meter_id, card in self.clerk.cards.items() if card.owner]

    def leaving(self) -> list[str]:
        return [meter_id for shut in self.clerk.shut.values() for meter_id in shut.meters]

    def register(self, meter_id: str, which: str) -> int:
        """Return what somebody says of a register: what it shows, what is known, or less."""
        card = self.clerk.cards[meter_id]
        if which == "charged":
            return AS_CHARGED
        card.shows_milli += TURNED_MILLI
        return max(card.shows_milli - BELOW_MILLI * (which == "below"), 0)

    @rule(meter_id=idle_meter, person=persons, to=accounts, which=registers, soon=st.booleans())
    def assign(self, meter_id: str, person: str, to: str, which: str, soon: bool) -> None:
        register_milli = self.register(meter_id, which)
        ask = self.new("assign", meter_id, person, about=to, register_milli=register_milli)
        self.ask_two(ask, soon)

    @precondition(lambda self: self.held())
    @rule(
        meter_id=held_meter,
        person=persons,
        to=accounts,
        which=registers,
        wrongly_from=st.sampled_from([None, None, None, "A1"]),
        soon=st.booleans(),
    )
    def move(
        self,
        meter_id: str,
        person: str,
        to: str,
        which: str,
        wrongly_from: str | None,
        soon: bool,
    ) -> None:
        """From who has it, or from another account; perhaps to the same."""
        was = wrongly_from or self.clerk.cards[meter_id].owner or "A2"
        register_milli, about = self.register(meter_id, which), f"{was} {to}"
        ask = self.new("move", meter_id, person, about=about, register_milli=register_milli)
        self.ask_two(ask, soon)

    @rule(meter_id=held_meter, person=persons, which=registers, soon=st.booleans())
    def release(self, meter_id: str, person: str, which: str, soon: bool) -> None:
        register_milli = self.register(meter_id, which)
        ask = self.new("release", meter_id, person, register_milli=register_milli)
        self.ask_two(ask, soon)

    @rule(
        meter_id=some_meter,
        person=persons,
        is_below=st.booleans(),
        begins_milli=st.sampled_from([0, 250, 9_000]),
        soon=st.booleans(),
    )
    def replace_device(
        self, meter_id: str, person: str, is_below: bool, begins_milli: int, soon: bool
    ) -> None:
        """Another device hangs there, and shows what it has counted elsewhere."""
        register_milli = self.register(meter_id, "below" if is_below else "shown")
        serial = f"serial-{len(self.asks)}"
        ask = self.new(
            "replace", meter_id, person, begins_milli, serial, register_milli=register_milli
        )
        self.ask_two(ask, soon)

    # --- relays ------------------------------------------------------------------------------

    @rule(meter_id=some_meter, person=persons, position=st.sampled_from(["off", "on", "prepaid"]))
    def switch(self, meter_id: str, person: str, position: str) -> None:
        """Order a relay; later than anything before, as it is in life."""
        self.later()
        self.ask(self.new(position, meter_id, person))

    @rule(
        person=persons,
        what=st.sampled_from(["batch off", "batch off", "batch on", "batch prepaid"]),
        meters=st.sampled_from([*([meter_id] for meter_id in METERS), METERS, METERS]),
        soon=st.integers(0, 2),
    )
    def switch_many(self, person: str, what: str, meters: list[str], soon: int) -> None:
        self.ask_two(self.new(what, "", person, about=" ".join(meters)), bool(soon))
        if soon == 2:
            self.gives_rounds()

    @rule(
        person=persons,
        meters=st.sampled_from([*([meter_id] for meter_id in METERS), METERS]),
        soon=st.integers(0, 2),
    )
    def export_many(self, person: str, meters: list[str], soon: int) -> None:
        """Let readings be exported: of whoever has the meters, and nothing else changes."""
        ask = self.new("batch export", "", person, about=" ".join(meters))
        self.ask_two(ask, bool(soon))
        if soon == 2:
            self.gives_rounds()

    @rule(
        person=persons,
        to=accounts,
        what=st.sampled_from(sorted(SWITCHING)),
        how=st.sampled_from(["tenant", "move"]),
    )
    def another_comes_before_it_is_approved(
        self, person: str, to: str, what: str, how: str
    ) -> None:
        """Let others come: what was ordered of a tenant's relay is not done to the next one."""
        many = self.new(what, "", person, about=" ".join(METERS))
        self.ask(many)
        for meter_id in METERS:
            owner = self.clerk.cards[meter_id].owner
            if owner and how == "tenant":
                self.ask_two(self.new("move in", owner, person, about="owed too"), soon=True)
            elif owner:
                self.move(meter_id, person, to, "shown", None, soon=True)
        if self.waiting.get(many) == "APPROVAL_REQUIRED":
            self.judges(many, another_than(person), yes=True)
        self.gives_rounds()

    @precondition(lambda self: self.held())
    @rule(person=persons, to=accounts)
    def another_moves_in_where_a_meter_is_to_go(self, person: str, to: str) -> None:
        """Let it be approved afterwards: what one has used is not charged to the next."""
        meter_id = self.held()[0]
        about = f"{self.clerk.cards[meter_id].owner} {to}"
        self.read(meter_id)  # it may leave by a closing with that
        register_milli = self.register(meter_id, "below")
        ask = self.new("move", meter_id, person, about=about, register_milli=register_milli)
        self.ask(ask)
        self.ask_two(self.new("move in", to, person, about="owed too"), soon=True)
        if self.waiting.get(ask) == "APPROVAL_REQUIRED":
            self.judges(ask, another_than(person), yes=True)

    @precondition(lambda self: self.held())
    @rule(person=persons, to=accounts, what=st.sampled_from(sorted(SWITCHING)))
    def another_takes_over_what_a_closing_has_cut(self, person: str, to: str, what: str) -> None:
        """Let a batch order a relay that a closing has cut, before and after somebody has it."""
        meter_id = self.is_cut(person).about
        self.read(meter_id)
        for _ in range(2):
            self.ask_two(self.new(what, "", person, about=meter_id), soon=True)
            self.gives_rounds()
            self.assign(meter_id, person, to, "shown", soon=False)

    def is_cut(self, person: str) -> Ask:
        """Let a closing in part begin; return it."""
        meter_id = self.held()[0]
        account = self.clerk.cards[meter_id].owner
        closing = self.new("close part", account, person, 1, meter_id)
        self.ask(closing)
        return closing

    @precondition(lambda self: self.held())
    @rule(person=persons, meanwhile=st.sampled_from(["", "off", "prepaid", "release"]))
    def a_closing_that_has_cut_is_cancelled(self, person: str, meanwhile: str) -> None:
        """Let its cut be undone, unless a person has ordered something since; nobody takes it."""
        closing = self.is_cut(person)
        if meanwhile == "release":
            self.release(closing.about, person, "shown", soon=False)
        elif meanwhile:
            self.switch(closing.about, person, meanwhile)
        self.ask(self.new("cancel closing", closing.account, person, about=closing.closing_id))

    # --- readings ----------------------------------------------------------------------------

    @rule(meter_id=of_town(lambda town: [*town.leaving() * 3, *METERS]))
    def read(self, meter_id: str) -> None:
        """Let a reading be charged that is taken a minute later, and comes a minute after that."""
        card = self.clerk.cards[meter_id]
        card.shows_milli += TURNED_MILLI

        async def charged() -> None:
            meter = await self.world.office.meter(meter_id)
            at_ms, register_milli = self.clerk.now_ms + MINUTE_MS, card.shows_milli
            told = Charged(meter.meter_key, meter.epoch, register_milli, register_milli, at_ms)
            await self.world.tables.keep_charged([told], [])

        self.run(charged())
        self.passes(2)
        self.clerk.read(meter_id)
