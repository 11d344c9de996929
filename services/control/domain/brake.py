"""A site's budget of cuts per minute, over every sliding minute."""

from bisect import insort
from collections import defaultdict

WINDOW_MS = 60_000


class Brake:
    """The cuts that were sent, per site; what is older than a minute is forgotten."""

    def __init__(self) -> None:
        self._sent: dict[str, list[tuple[int, str]]] = defaultdict(list)

    def used(self, site_id: str, now_ms: int) -> int:
        """Return how many cuts were sent within the minute that ends now."""
        sent = self._sent[site_id]
        while sent and sent[0][0] <= now_ms - WINDOW_MS:
            sent.pop(0)
        return len(sent)

    def free_at_ms(self, site_id: str, budget_count: int, now_ms: int) -> int:
        """Return when the next cut may be sent: `now_ms` where it may be sent now."""
        used = self.used(site_id, now_ms)
        if used < budget_count:
            return now_ms
        if budget_count <= 0:
            return now_ms + WINDOW_MS
        return self._sent[site_id][used - budget_count][0] + WINDOW_MS

    def count(self, site_id: str, request_id: str, sent_at_ms: int) -> None:
        """Count a cut, once, in any order: also one found in the log after a restart."""
        entry = (sent_at_ms, request_id)
        if entry not in self._sent[site_id]:
            insort(self._sent[site_id], entry)
