"""Pure: request and endpoint states -> choice with its reason.

One scale compares every endpoint: money plus time, time turned into money at
`usd_per_hour_waited`. The time is the caller's own and that which others wait longer for the call.
Spilling from a busy local pool to a hosted model, and back, follows from these; there is no special
case for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from agentcloud.cluster.contracts import Policy

#: How each policy scales the value of an hour waited.
TIME_WEIGHT: Final = {Policy.COST: 0.05, Policy.BALANCED: 1.0, Policy.LATENCY: 100.0}
#: How each counts what others wait, who have policies of their own.
_OTHERS_WEIGHT: Final = {Policy.COST: 0.05, Policy.BALANCED: 1.0, Policy.LATENCY: 1.0}
#: With a deadline to meet, time within it only breaks near-ties of money.
#: (a millionth: an hour of a call that can wait must not outweigh half of its small price).
_IN_TIME_WEIGHT: Final = 1e-6


#: What others wait less than this is not spoken of.
_TOLD_S: Final = 0.1


class Candidate:
    """One able endpoint (the best of its class) as the choice sees it.

    Attributes:
        name: the endpoint's name.
        cost_usd: expected cost of the call there, marginal for local ones.
        wait_s: expected wait at the scheduler; 0.0: it could start now.
        service_s: expected time from sending to the last token.
        standing: why it is not free now, in words; empty when it is.
        felt_s: the part of `service_s` that its caller waits for: of a stream that is read as it
            comes, the time to its first token; None: all of it.
        others_s: expected time that other calls wait longer for it, all together.
        worth: what that time is worth by their own policies, relative to `balanced`.
    """

    __slots__ = (
        "cost_usd",
        "felt_s",
        "name",
        "others_s",
        "service_s",
        "standing",
        "wait_s",
        "worth",
    )

    def __init__(
        self,
        name: str,
        cost_usd: float,
        wait_s: float,
        service_s: float,
        standing: str,
        felt_s: float | None = None,
        others_s: float = 0.0,
        worth: float = 1.0,
    ) -> None:
        self.name = name
        self.cost_usd = cost_usd
        self.wait_s = wait_s
        self.service_s = service_s
        self.standing = standing
        self.felt_s = felt_s
        self.others_s = others_s
        self.worth = worth

    @property
    def total_s(self) -> float:
        """Predicted time to completion."""
        return self.wait_s + self.service_s

    @property
    def waited_s(self) -> float:
        """Predicted time that the caller waits."""
        return self.wait_s + (self.service_s if self.felt_s is None else self.felt_s)


C = TypeVar("C", bound=Candidate)


def score_usd(candidate: Candidate, usd_per_s: float, others_usd_per_s: float) -> float:
    """Money and time of a candidate on the one scale."""
    own_usd = candidate.waited_s * usd_per_s
    others_usd = candidate.others_s * candidate.worth * others_usd_per_s
    return candidate.cost_usd + own_usd + others_usd


def choose(
    candidates: Sequence[Candidate],
    policy: Policy,
    deadline_left_s: float | None,
    usd_per_hour_waited: float,
) -> int:
    """Index of the best candidate; the first of equals.

    Without a deadline the least of money plus time wins. With one: among those predicted to meet
    it the cheapest (`latency`: the least of money plus its heavily weighted time); when none
    does, the fastest.
    """
    usd_per_s = usd_per_hour_waited * TIME_WEIGHT[policy] / 3600.0
    others_usd_per_s = usd_per_hour_waited * _OTHERS_WEIGHT[policy] / 3600.0
    if deadline_left_s is not None:
        in_time = [
            index
            for index, candidate in enumerate(candidates)
            if candidate.wait_s + candidate.service_s <= deadline_left_s
        ]
        if not in_time:
            return min(range(len(candidates)), key=lambda index: candidates[index].total_s)
        if policy is not Policy.LATENCY:
            usd_per_s *= _IN_TIME_WEIGHT
            others_usd_per_s *= _IN_TIME_WEIGHT
        return min(
            in_time, key=lambda index: score_usd(candidates[index], usd_per_s, others_usd_per_s)
        )
    best, best_usd = 0, float("inf")
    for index, candidate in enumerate(candidates):
        usd = score_usd(candidate, usd_per_s, others_usd_per_s)
        if usd < best_usd:
            best, best_usd = index, usd
    return best


def runner_up(
    candidates: Sequence[C], chosen: int, policy: Policy, usd_per_hour_waited: float
) -> C | None:
    """The next best on the one scale, None where there is no other."""
    usd_per_s = usd_per_hour_waited * TIME_WEIGHT[policy] / 3600.0
    others_usd_per_s = usd_per_hour_waited * _OTHERS_WEIGHT[policy] / 3600.0
    best, best_usd = None, float("inf")
    for index, candidate in enumerate(candidates):
        if index != chosen:
            usd = score_usd(candidate, usd_per_s, others_usd_per_s)
            if usd < best_usd:
                best, best_usd = candidate, usd
    return best


def reason(
    candidates: Sequence[Candidate],
    chosen: int,
    able: int,
    policy: Policy,
    deadline_left_s: float | None,
    peer: str = "",
    other: Candidate | None = None,
) -> str:
    """Why `chosen` was taken, for a person.

    Args:
        candidates: as given to `choose`.
        chosen: what it returned.
        able: endpoints able to serve the request, all members of the classes counted.
        policy: the policy it was chosen under.
        deadline_left_s: seconds left, None without a deadline.
        peer: words on how it was picked among its equals.
        other: the runner-up, to be named with its standing.
    """
    candidate = candidates[chosen]
    if able == 1:
        word = "only one able"
    else:
        word = f"{_superlative(candidates, chosen, policy, deadline_left_s)} of {able} able"
    to_first = "" if candidate.felt_s is None else " to the first token"
    text = f"{word}: predicted {_figures(candidate, to_first)}"
    if peer:
        text = f"{text}; {peer}"
    if other is None:
        return text
    return f"{text}; {other.name} {other.standing or 'free'}: {_figures(other)}"


def _superlative(
    candidates: Sequence[Candidate], chosen: int, policy: Policy, deadline_left_s: float | None
) -> str:
    candidate = candidates[chosen]
    cost_usd, waited_s = candidate.cost_usd, candidate.waited_s
    if deadline_left_s is not None:
        if candidate.total_s > deadline_left_s:
            return f"fastest (deadline in {deadline_left_s:.3g} s will be missed)"
        if policy is not Policy.LATENCY:
            return f"cheapest to meet {deadline_left_s:.3g} s"
    cheapest = fastest = True
    for each in candidates:
        cheapest = cheapest and cost_usd <= each.cost_usd
        fastest = fastest and waited_s <= each.waited_s
    # Four cases: it wins on both, on money, on time, or on the sum of the two.
    if cheapest and fastest:
        return "cheapest and fastest" if len(candidates) > 1 else "least loaded"
    if cheapest:
        return "cheapest"
    return "fastest" if fastest else "best of money and time"


def _figures(candidate: Candidate, to_first: str = "") -> str:
    text = f"{candidate.waited_s:.3g} s{to_first}, ${_usd(candidate.cost_usd)}"
    if candidate.others_s >= _TOLD_S:
        text = f"{text}, and others wait {candidate.others_s:.3g} s longer"
    return text


def _usd(amount: float) -> str:
    return f"{amount:.7f}".rstrip("0").rstrip(".")
