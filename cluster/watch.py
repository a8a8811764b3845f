"""Pure: what a replica's reports say about its health.

Health is progress: requests running and no new token for N seconds is dead, whatever a health
call says; a slow health call alone kills nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentcloud.cluster.config_rules import Health
from agentcloud.cluster.contracts import LoadReport

#: Restarts back off from this, doubling up to the cap, seconds.
RESTART_BASE_S = 1.0
RESTART_CAP_S = 60.0


@dataclass(frozen=True, slots=True)
class Observation:
    """The last report of a replica and when it came, on the watcher's clock."""

    report: LoadReport
    at_s: float


def death_reason(seen: Observation, now_s: float, health: Health) -> str | None:
    """Why the replica counts as dead, or None while it lives.

    Two cases: it reports requests that make no progress; or it had requests and has not
    reported at all for as long (its event loop is stuck, so no token leaves it either).
    An idle replica that is slow to report is left alone.
    """
    if not seen.report.running and not seen.report.waiting:
        return None
    silent_s = now_s - seen.at_s
    stalled_s = seen.report.progress_age_s + silent_s
    if stalled_s <= health.stall_s:
        return None
    requests = seen.report.running + seen.report.waiting
    return f"{requests} requests and no new token for {stalled_s:.0f} s"


def restart_delay_s(restarts_in_a_row: int) -> float:
    """Seconds to wait before the next start: at once, then doubling up to a minute."""
    if restarts_in_a_row == 0:
        return 0.0
    return min(RESTART_CAP_S, RESTART_BASE_S * 2.0 ** min(restarts_in_a_row - 1, 16))
