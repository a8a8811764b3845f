"""Pure: when a call counts as slow among its equals, and how many calls may be sent twice.

A call marked idempotent that has run longer than nearly all of its class did is sent a second time
elsewhere; the first good answer wins. As in "The Tail at Scale" (Dean and Barroso): a few percent
more sends take away most of the tail, and a cap keeps a slow day from doubling the load.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from agentcloud.cluster.config_rules import Hedge
from agentcloud.cluster.pool import EndpointClass

#: Calls of a class that its percentile is taken from, and how often it is taken anew.
_RECENT: Final = 512
_RENEW: Final = 16
#: Second sends that may be saved up.
_MOST_SAVED: Final = 10.0
#: No call is slow sooner.
_SOONEST_S: Final = 0.001


class _Times:
    """How long the calls of one class took, seconds; those given up count as far as they came."""

    __slots__ = ("_known_s", "_recent", "_until_renewed")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._known_s: float | None = None
        self._until_renewed = 0

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        self._until_renewed -= 1

    def at(self, fraction: float, least: int) -> float | None:
        """The nearest-rank percentile; None below `least` calls."""
        if len(self._recent) < least:
            return None
        if self._known_s is None or self._until_renewed <= 0:
            ordered = sorted(self._recent)
            self._known_s = ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
            self._until_renewed = _RENEW
        return self._known_s


class Hedges:
    """What is known of the tail, and the cap on second sends.

    Guarantee: after N first sends of idempotent calls at most `max_share * N + 1` were hedged.
    """

    __slots__ = ("_hedge", "_saved", "_times")

    def __init__(self, hedge: Hedge) -> None:
        self._times: dict[EndpointClass, _Times] = {}
        self._saved = 1.0
        self._hedge = hedge

    def configure(self, hedge: Hedge) -> None:
        """Take another fleet.yaml's section."""
        self._hedge = hedge

    def learn(self, cls: EndpointClass, seconds: float) -> None:
        """A call took so long from its grant to its answer, or to being beaten by its hedge."""
        times = self._times.get(cls)
        if times is None:
            times = self._times[cls] = _Times()
        times.add(seconds)

    def after_s(self, cls: EndpointClass) -> float | None:
        """Seconds after which a call of this class is slow; None: no data, or switched off."""
        times = self._times.get(cls)
        if times is None or not self._hedge.max_share:
            return None
        slow_s = times.at(self._hedge.percentile, self._hedge.min_calls)
        return None if slow_s is None else max(_SOONEST_S, slow_s)

    def first(self) -> None:
        """A first send of an idempotent call was granted."""
        self._saved = min(_MOST_SAVED, self._saved + self._hedge.max_share)

    def has(self) -> bool:
        """Whether one more call may be hedged."""
        return bool(self._hedge.max_share) and self._saved >= 1.0 - 1e-9

    def take(self) -> None:
        """A call was hedged; `has` must have said so."""
        self._saved -= 1.0

    def __repr__(self) -> str:
        return f"<Hedges saved={self._saved:.2f} classes={len(self._times)}>"
