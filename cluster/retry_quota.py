"""Pure: how many sends after a call's first one an endpoint may be given (no storms).

As in Finagle's retry budget and the AWS SDKs' retry quota: a token bucket that first sends fill.
It lives in the scheduler, because counted in each process N processes would retry N times as much.
"""

from __future__ import annotations

from typing import Final

#: What first sends may save up where the allowance is smaller.
_LEAST_SAVED: Final = 10.0
#: Rounding slack of float arithmetic.
_EPSILON: Final = 1e-9


class RetryQuotas:
    """One bucket per endpoint.

    Guarantee: an endpoint that was given N first sends is given at most `ratio * N + allowance`
    later ones, whatever happens. Forgotten when the scheduler restarts.
    """

    __slots__ = ("_allowance", "_levels", "_most", "_ratio")

    def __init__(self, ratio: float, allowance: int) -> None:
        self._levels: dict[str, float] = {}
        self.configure(ratio, allowance)

    def configure(self, ratio: float, allowance: int) -> None:
        """Take other settings; what was saved up stays, as far as it fits."""
        self._ratio = ratio
        self._allowance = float(allowance)
        self._most = max(self._allowance, _LEAST_SAVED)
        self._levels = {name: min(level, self._most) for name, level in self._levels.items()}

    def first(self, endpoint: str) -> None:
        """A first send was granted."""
        level = self._levels.get(endpoint, self._allowance) + self._ratio
        self._levels[endpoint] = level if level < self._most else self._most

    def has(self, endpoint: str) -> bool:
        """Whether one more later send may be granted."""
        return self._levels.get(endpoint, self._allowance) >= 1.0 - _EPSILON

    def later(self, endpoint: str) -> None:
        """A later send was granted; `has` must have said so."""
        self._levels[endpoint] = self._levels.get(endpoint, self._allowance) - 1.0

    def left(self, endpoint: str) -> int:
        """Later sends that may be granted now."""
        return int(self._levels.get(endpoint, self._allowance) + _EPSILON)

    def tell(self, endpoint: str) -> str:
        """Why it is used up, for a person."""
        return (
            f"{endpoint} was given its share of later sends ({self._ratio:.0%} of first ones and "
            f"{self._allowance:.0f} more; `retry.ratio` of fleet.yaml)"
        )

    def __repr__(self) -> str:
        return f"<RetryQuotas ratio={self._ratio} endpoints={len(self._levels)}>"
