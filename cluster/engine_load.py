"""What an engine last said of its load, kept so that asking costs nothing."""

from __future__ import annotations

from typing import Protocol

from agentcloud.cluster.clock import Clock, SystemClock
from agentcloud.cluster.contracts import LoadReport


class _SchedulerStats(Protocol):
    num_running_reqs: int
    num_waiting_reqs: int
    num_skipped_waiting_reqs: int
    kv_cache_usage: float


class _IterationStats(Protocol):
    num_generation_tokens: int


class LoadMeter:
    """Fed by every step of the engine; read by whoever schedules.

    The engine reports only while it steps, so after its last request was aborted it says nothing
    more: an engine without requests is known to be idle, whatever it said before.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._running = 0
        self._waiting = 0
        self._kv_used_fraction = 0.0
        self._tokens_done = 0
        self._progress_at_s = self._clock.now()

    def __repr__(self) -> str:
        return f"LoadMeter(running={self._running}, waiting={self._waiting})"

    def record(self, scheduler: _SchedulerStats | None, iteration: _IterationStats | None) -> None:
        """Take in one step's statistics."""
        if scheduler is not None:
            self._running = scheduler.num_running_reqs
            self._waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self._kv_used_fraction = scheduler.kv_cache_usage
        if iteration is not None and iteration.num_generation_tokens:
            self._tokens_done += iteration.num_generation_tokens
            self._progress_at_s = self._clock.now()

    def woke(self) -> None:
        """The first request after an idle time came: progress is due from now on."""
        self._progress_at_s = self._clock.now()

    def report(self, *, unfinished: int, prompt_tokens_queued: int) -> LoadReport:
        """The load now.

        Args:
            unfinished: requests that the engine's front has not seen the end of.
            prompt_tokens_queued: prompt tokens not yet prefilled.
        """
        if not unfinished:
            return LoadReport(tokens_done=self._tokens_done, at_s=self._clock.now())
        # Requests that the engine has not reported on yet wait.
        waiting = max(self._waiting, unfinished - self._running)
        return LoadReport(
            running=min(self._running, unfinished),
            waiting=min(waiting, unfinished),
            kv_used_fraction=self._kv_used_fraction,
            tokens_done=self._tokens_done,
            prompt_tokens_queued=prompt_tokens_queued,
            progress_age_s=self._clock.now() - self._progress_at_s,
            at_s=self._clock.now(),
        )
