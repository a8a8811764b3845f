"""Pure: what the scheduler decides about hosted models' prompt caches: who writes, reads, waits."""

from __future__ import annotations

from agentcloud.cluster.contracts import LeaseRequest
from agentcloud.cluster.policy import TIME_WEIGHT
from agentcloud.cluster.registry import Registry
from agentcloud.cluster.waiting import Waiter
from agentcloud.cluster.warming import Warming
from agentcloud.cluster.weighing import Choice


class HostedCache:
    """Beginnings of prompts at hosted models: seen before, being written, worth waiting for.

    The only place that knows whether a call may get marks: its lease says how much of its prompt
    is to be marked, and its sender does no more than ask whether the model's prices make that pay.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._warming = Warming()

    def came(self, request: LeaseRequest) -> None:
        """A request waits for a decision."""
        if self._registry.config.hosted:
            self._warming.came(request)

    def decided(self, request: LeaseRequest) -> None:
        """It no longer does."""
        if self._registry.config.hosted:
            self._warming.decided(request)

    def hold_until(self, waiter: Waiter, choice: Choice, now_s: float) -> float | None:
        """Until when a call about to be granted waits for one that writes what it will read.

        Returns:
            Clock time; None: it does not wait.
        """
        best, request = choice.best, waiter.request
        least_tokens = self._least_tokens(request, choice)
        if not self._warming or request.hedge or least_tokens is None:
            return None
        value_usd = self._registry.usd_per_hour_waited
        return self._warming.holds(
            waiter,
            best.name,
            least_tokens,
            best.option.usd_per_input,
            value_usd * TIME_WEIGHT[waiter.policy] / 3600.0,
            best.estimate.total_s,
            now_s,
        )

    def reuse(self, request: LeaseRequest, choice: Choice, now_s: float) -> tuple[int, bool]:
        """What a call that is granted now shares with others.

        Returns:
            Chunks of its beginning that others had or will have, to be marked; and whether the
            cache has them not yet, so that this call writes them.
        """
        if not request.prefix:
            return 0, False
        state, least_tokens = choice.state, self._least_tokens(request, choice)
        if state is None or least_tokens is None:
            return 0, False
        chunks = max(state.held_chunks(request, now_s), self._warming.foreseen(request))
        if not chunks:
            return 0, False
        name, prefix = choice.best.name, request.prefix[:chunks]
        warm = self._warming.warm_chunks(name, prefix, now_s)
        self._warming.used(name, prefix[:warm], now_s)
        return chunks, warm < chunks and request.prefix_tokens[chunks - 1] >= least_tokens

    def writes(
        self, lease_id: str, name: str, prefix: tuple[int, ...], ttft_s: float | None, now_s: float
    ) -> None:
        """A call was granted that writes a beginning."""
        self._warming.granted(lease_id, name, prefix, ttft_s, now_s)

    def ended(self, lease_id: str, now_s: float, *, written: bool) -> list[Waiter]:
        """A writer's first token came (`written`), or it ended: those that it held go on."""
        return self._warming.ended(lease_id, now_s, written=written) if self._warming else []

    def _least_tokens(self, request: LeaseRequest, choice: Choice) -> int | None:
        """The shortest beginning that the chosen model caches; None: no marks for this call."""
        spec = choice.best.option.cls.spec
        wished = request.routing.cache_marks
        allowed = self._registry.config.cache_marks if wished is None else wished
        return spec.min_cache_tokens if allowed and request.prefix and not spec.batch else None

    def __repr__(self) -> str:
        return f"<HostedCache {self._warming!r}>"
