"""The virtual fleet as the demo sees it: its true registers and relays, over its own HTTP API."""

from dataclasses import dataclass
from typing import Any

import aiohttp

TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class Transition:
    """A relay moved: `position` open or closed, at ms UTC on this machine's clock."""

    position: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class TrueMeter:
    """What stands in the device itself.

    `register_lsb`: the register it shows, 0.01 kWh; `power_w`: primary power when the load is on.
    """

    meter_id: str
    register_lsb: int
    power_w: int
    position: str
    online: bool
    reads_served: int
    transitions: tuple[Transition, ...]


class Fleet:
    """Commands and observations of the running fleet."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._base = base_url

    async def meters(self) -> dict[str, TrueMeter]:
        """Return every meter by its id."""
        shown = await self._get("/meters")
        return {row["id"]: _meter(row) for row in shown["meters"]}

    async def meter(self, meter_id: str) -> TrueMeter:
        """Return one meter."""
        return _meter(await self._get(f"/meters/{meter_id}"))

    async def load(self, *, on: bool) -> None:
        """Switch every load on or off."""
        await self._post("/load", {"on": on})

    async def offline_after(self, meter_id: str, register_lsb: int) -> None:
        """Let the meter vanish with the first reading it serves at or above the register."""
        await self._post(f"/meters/{meter_id}/offline", {"after_register_lsb": register_lsb})

    async def online(self, meter_id: str) -> None:
        """Let the meter return."""
        await self._post(f"/meters/{meter_id}/online", {})

    async def _get(self, path: str) -> Any:
        async with self._session.get(self._base + path) as response:
            response.raise_for_status()
            return await response.json()

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        async with self._session.post(self._base + path, json=body) as response:
            response.raise_for_status()


def _meter(row: dict[str, Any]) -> TrueMeter:
    return TrueMeter(
        row["id"],
        row["register_lsb"],
        row["power_w"],
        row["relay"],
        row["online"],
        row["reads_served"],
        tuple(Transition(t["position"], t["at_ms"]) for t in row["transitions"]),
    )
