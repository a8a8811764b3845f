"""Pure: leases that a process holds in advance, so that steady traffic waits for no round trip.

A kind of request that comes again and again gets a few leases ahead of its calls: as many as come
during one round trip, never more than `MOST`. Whoever takes one tells the scheduler with the next
exchange, which asks for the next one too.

Only local endpoints give them. A lease there takes a slot and nothing else; where calls are paid
for it would hold worst cases of money and of rate limits for calls that may never come, be written
to disk twice, and save a millisecond of calls that take a second.

The scheduler gives one only where nobody waits and the endpoint is not near its limit. One that is
not used within `KEEP_S` is given back; a request with a deadline, one that failed before, and one
that may be hedged are decided when they come.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from agentcloud.cluster.contracts import Lease, LeaseRequest

#: Spare leases of one kind of request in one process.
MOST: Final = 4
KEEP_S: Final = 2.0
#: Traffic is steady after so many requests of a kind, none later than this after the one before.
_STEADY: Final = 8
_GAP_S: Final = 0.5
#: What one round trip takes on a busy machine, lingering and pacing included.
_TRIP_S: Final = 0.02
#: A kind that was refused a spare asks again after this.
_REST_S: Final = 1.0
_KINDS: Final = 16
_BLEND: Final = 0.2

_Kind = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """A spare lease and the call that took it."""

    lease_id: str
    request: LeaseRequest


@dataclass(slots=True)
class _Traffic:
    """One kind of request: how often it comes, how large, its spare leases, oldest first."""

    last_s: float
    streak: int = 0
    gap_s: float = _GAP_S
    input_tokens: int = 0
    max_output_tokens: int = 0
    rests_until_s: float = 0.0
    asked: int = 0
    spares: deque[tuple[float, LeaseRequest, Lease]] = field(default_factory=deque)


class Spares:
    """Spare leases of one process."""

    def __init__(self, name: str) -> None:
        """Hold none.

        Args:
            name: of the process; spare requests are named after it.
        """
        self._name = name
        self._count = 0
        self._kinds: OrderedDict[_Kind, _Traffic] = OrderedDict()
        self._asked: dict[str, tuple[_Traffic, LeaseRequest]] = {}

    def __len__(self) -> int:
        return sum(len(traffic.spares) for traffic in self._kinds.values())

    def __repr__(self) -> str:
        return f"<Spares {len(self)} held, {len(self._asked)} asked for>"

    def take(self, request: LeaseRequest, now_s: float) -> Lease | None:
        """A spare lease for a request; None: it must ask. Either way it counts as traffic."""
        kind = _kind(request)
        if kind is None:
            return None
        traffic = self._kinds.get(kind)
        if traffic is None:
            traffic = self._kinds[kind] = _Traffic(now_s)
        self._kinds.move_to_end(kind)
        gap_s = now_s - traffic.last_s
        traffic.last_s = now_s
        traffic.streak = traffic.streak + 1 if gap_s <= _GAP_S else 0
        traffic.gap_s += _BLEND * (min(gap_s, _GAP_S) - traffic.gap_s)
        traffic.input_tokens = max(traffic.input_tokens, request.input_tokens)
        traffic.max_output_tokens = max(traffic.max_output_tokens, request.max_output_tokens)
        while traffic.spares:
            since_s, template, lease = traffic.spares[-1]
            fits = (
                request.input_tokens <= template.input_tokens
                and request.max_output_tokens <= template.max_output_tokens
            )
            if not fits or now_s - since_s > KEEP_S:
                return None  # All others are older; `stale` gives them back.
            traffic.spares.pop()
            return replace(lease, call_id=request.call_id, queued_s=0.0)
        return None

    def wanted(self, request: LeaseRequest, now_s: float) -> list[LeaseRequest]:
        """Requests for the spares that this kind of request should have and has not."""
        kind = _kind(request)
        traffic = None if kind is None else self._kinds.get(kind)
        if traffic is None or traffic.streak < _STEADY or now_s < traffic.rests_until_s:
            return []
        target = min(MOST, 1 + int(_TRIP_S / max(traffic.gap_s, 1e-6)))
        requests = []
        for _ in range(target - len(traffic.spares) - traffic.asked):
            self._count += 1
            spare = replace(
                request,
                call_id=f"spare-{self._name}-{self._count}",
                input_tokens=traffic.input_tokens,
                max_output_tokens=traffic.max_output_tokens,
                routing=replace(request.routing, budget=()),
                spare=True,
            )
            traffic.asked += 1
            self._asked[spare.call_id] = traffic, spare
            requests.append(spare)
        return requests

    def decided(self, call_id: str, lease: Lease | None, now_s: float) -> bool:
        """A decision came; False: it is on no spare request of ours."""
        known = self._asked.pop(call_id, None)
        if known is None:
            return False
        traffic, request = known
        traffic.asked -= 1
        if lease is None:
            traffic.rests_until_s = now_s + _REST_S
        else:
            traffic.spares.append((now_s, request, lease))
        return True

    def stale(self, now_s: float) -> Iterator[Lease]:
        """Take out the leases that nobody used in time, and kinds that do not come any more."""
        for traffic in self._kinds.values():
            spares = traffic.spares
            while spares and now_s - spares[0][0] >= KEEP_S:
                yield spares.popleft()[2]
        idle = [kind for kind, each in self._kinds.items() if not (each.spares or each.asked)]
        for kind in idle[: max(0, len(self._kinds) - _KINDS)]:
            del self._kinds[kind]

    def clear(self) -> list[Lease]:
        """Forget everything; the leases that were held."""
        leases = [lease for each in self._kinds.values() for _, _, lease in each.spares]
        self._kinds.clear()
        self._asked.clear()
        return leases


def _kind(request: LeaseRequest) -> _Kind | None:
    """What requests must share to be served by each other's leases; None: by none."""
    routing = request.routing
    if request.attempt > 1 or request.avoid or request.hedge:
        return None
    if routing.deadline_s is not None or routing.idempotent:
        return None
    # The budget is told when a spare is taken: every task has its own, and a local call reserves
    # nothing. Prompts that begin alike find their beginning in the same cache.
    return (
        request.model,
        request.needs,
        request.input_tokens.bit_length(),
        request.max_output_tokens.bit_length(),
        request.stream,
        request.prefix[:1],
        routing.tier,
        routing.priority,
        routing.policy,
        routing.endpoint,
        routing.timeout_s,
        routing.fallback,
    )
