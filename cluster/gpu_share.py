"""Pure: one call's share of the time of a replica that serves many at once."""

from __future__ import annotations


class GpuShare:
    """Splits an endpoint's busy seconds evenly over the calls running at each moment.

    Exact for the calls of one process: their shares add up to the time the endpoint was busy with
    any of them. Caveat: calls of other processes on the same replica are not seen, so what is
    charged is an upper bound.
    """

    def __init__(self) -> None:
        self._running = 0
        self._per_call_s = 0.0
        self._at_s = 0.0

    def __repr__(self) -> str:
        return f"GpuShare(running={self._running}, per_call_s={self._per_call_s:.6g})"

    def begin(self, now_s: float) -> float:
        """A call starts; returns its mark, to be given to `end`."""
        self._advance(now_s)
        self._running += 1
        return self._per_call_s

    def end(self, mark: float, now_s: float) -> float:
        """A call ends; returns its share, seconds."""
        self._advance(now_s)
        self._running -= 1
        return self._per_call_s - mark

    def _advance(self, now_s: float) -> None:
        if self._running:
            self._per_call_s += (now_s - self._at_s) / self._running
        self._at_s = now_s
