"""What the response cache answered and saved, on Ray's metric export."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from ray.util.metrics import Counter

from agentcloud.cluster.cache_service import Counts


class CacheMetrics:
    """Counters by tier or model; Ray puts `ray_` before each name.

    The hit rate is `hit` and `shared` over all of `agentcloud_cache_calls_total`.
    """

    def __init__(self) -> None:
        self._calls = Counter(
            "agentcloud_cache_calls_total",
            "Calls that the response cache might answer: hit, shared with one under way, or sent",
            tag_keys=("model", "outcome"),
        )
        self._saved = Counter(
            "agentcloud_cache_saved_usd_total",
            "What calls did not cost that the response cache answered, USD",
            tag_keys=("model",),
        )
        self._told: dict[tuple[str, str], int | Decimal] = {}

    def export(self, counts: Mapping[str, Counts]) -> None:
        """Tell Ray what changed since the last time."""
        for model, each in counts.items():
            totals = {"hit": each.hits, "shared": each.shared, "miss": each.misses}
            for outcome, total in totals.items():
                self._tell(self._calls, {"model": model, "outcome": outcome}, total)
            self._tell(self._saved, {"model": model}, each.saved_usd)

    def _tell(self, counter: Counter, tags: dict[str, str], total: int | Decimal) -> None:
        key = tags["model"], tags.get("outcome", "")
        # Ray's counters refuse Decimal and zero.
        if (more := total - self._told.get(key, 0)) > 0:
            self._told[key] = total
            counter.inc(float(more), tags)
