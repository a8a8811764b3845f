"""Pure: of calls that begin alike one writes a hosted model's cache, the rest wait for it.

An entry of the cache can be read only once the answer to the call that wrote it has begun: of a
hundred calls sent at once every one would pay for writing. So the first is granted, and those that
share its beginning are held back until its first token, its end, or a time limit. A call is held
only as long as what it saves is worth at the price of its time, never beyond its deadline, and at
most twice.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Final

from agentcloud.cluster.contracts import LeaseRequest
from agentcloud.cluster.endpoint import HOSTED_TTL_S
from agentcloud.cluster.waiting import Waiter

#: What reading saves against writing, in prices of plain input: 1.25 less 0.1.
SAVED_SHARE: Final = 1.15
#: A first token that is not there by so many times its prediction is not waited for any longer.
_PATIENCE: Final = 3.0
#: The prediction where there is none, and the longest wait, seconds.
_TTFT_GUESS_S: Final = 2.0
_LONGEST_S: Final = 10.0
_MOST_HOLDS: Final = 2
_KEPT: Final = 20_000


@dataclass(slots=True)
class _Writer:
    """A call under way that writes the cache.

    Attributes:
        expected_s: when its first token is expected.
        until_s: when that is no longer waited for.
    """

    endpoint: str
    prefix: tuple[int, ...]
    expected_s: float
    until_s: float
    held: list[Waiter] = field(default_factory=list)


class Warming:
    """Which beginnings hosted models have cached, which are being written, and who waits."""

    def __init__(self) -> None:
        self._writers: dict[str, _Writer] = {}
        self._writes: dict[tuple[str, int], str] = {}
        self._warm: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._asked: Counter[int] = Counter()

    def came(self, request: LeaseRequest) -> None:
        """A request waits for a decision."""
        self._asked.update(request.prefix)

    def decided(self, request: LeaseRequest) -> None:
        """It no longer does."""
        asked = self._asked
        for chunk in request.prefix:
            left = asked[chunk] - 1
            if left > 0:
                asked[chunk] = left
            else:
                asked.pop(chunk, None)

    def foreseen(self, request: LeaseRequest) -> int:
        """Chunks of a waiting request's prefix that another waiting one has too."""
        asked = self._asked
        return next(
            (at for at, chunk in enumerate(request.prefix) if asked[chunk] < 2),
            len(request.prefix),
        )

    def warm_chunks(self, endpoint: str, prefix: tuple[int, ...], now_s: float) -> int:
        """Chunks of a prefix that an endpoint has cached."""
        warm = self._warm
        return next(
            (at for at, chunk in enumerate(prefix) if warm.get((endpoint, chunk), 0.0) <= now_s),
            len(prefix),
        )

    def holds(
        self,
        waiter: Waiter,
        endpoint: str,
        min_tokens: int,
        usd_per_token: float,
        usd_per_s: float,
        service_s: float,
        now_s: float,
    ) -> float | None:
        """Hold a call back whose beginning is being written, if that pays.

        Args:
            waiter: the call, about to be granted.
            endpoint: where.
            min_tokens: the model caches nothing shorter.
            usd_per_token: of plain input.
            usd_per_s: what a second of its time is worth.
            service_s: what it is predicted to take.
            now_s: the clock.

        Returns:
            Clock time until which it is held at most; None: it is not.
        """
        request = waiter.request
        prefix = request.prefix
        depth = next(
            (at for at, chunk in enumerate(prefix) if (endpoint, chunk) not in self._writes),
            len(prefix),
        )
        if not depth or waiter.holds >= _MOST_HOLDS:
            return None
        warm = self.warm_chunks(endpoint, prefix[:depth], now_s)
        tokens = request.prefix_tokens[depth - 1]
        if warm >= depth or tokens < min_tokens:
            return None
        new = tokens - (request.prefix_tokens[warm - 1] if warm else 0)
        worth_s = new * usd_per_token * SAVED_SHARE / usd_per_s if usd_per_s else _LONGEST_S
        writer = self._writers[self._writes[endpoint, prefix[depth - 1]]]
        until_s = min(writer.until_s, now_s + worth_s)
        if waiter.deadline_s is not None:
            until_s = min(until_s, waiter.deadline_s - 1.5 * service_s)
        if until_s <= max(now_s, writer.expected_s):
            return None
        waiter.holds += 1
        waiter.held = True
        writer.held.append(waiter)
        return until_s

    def granted(
        self,
        lease_id: str,
        endpoint: str,
        prefix: tuple[int, ...],
        ttft_s: float | None,
        now_s: float,
    ) -> None:
        """A call was granted that writes a beginning."""
        ttft_s = _TTFT_GUESS_S if ttft_s is None else ttft_s
        until_s = now_s + min(_LONGEST_S, max(1.0, _PATIENCE * ttft_s))
        self._writers[lease_id] = _Writer(endpoint, prefix, now_s + ttft_s, until_s)
        for chunk in prefix:
            self._writes.setdefault((endpoint, chunk), lease_id)

    def used(self, endpoint: str, prefix: tuple[int, ...], now_s: float) -> None:
        """A beginning is cached from now on, or was read again."""
        for chunk in prefix:
            self._warm[endpoint, chunk] = now_s + HOSTED_TTL_S
            self._warm.move_to_end((endpoint, chunk))
        while len(self._warm) > _KEPT:
            self._warm.popitem(last=False)

    def ended(self, lease_id: str, now_s: float, *, written: bool) -> list[Waiter]:
        """A writer's first token came (`written`), or it ended: those that it held go on."""
        writer = self._writers.pop(lease_id, None)
        if writer is None:
            return []
        for chunk in writer.prefix:
            if self._writes.get((writer.endpoint, chunk)) == lease_id:
                del self._writes[writer.endpoint, chunk]
        if written:
            self.used(writer.endpoint, writer.prefix, now_s)
        return [waiter for waiter in writer.held if waiter.held and not waiter.decided]

    def __bool__(self) -> bool:
        return bool(self._writers)

    def __repr__(self) -> str:
        return f"<Warming writers={len(self._writers)} warm={len(self._warm)} chunks>"
