"""Pure: a waiting request and the pool's state -> candidates on one scale -> the choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from agentcloud.cluster.contracts import Considered, LeaseRequest, Policy
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.policy import Candidate, choose, reason, runner_up
from agentcloud.cluster.pool import Pick, felt
from agentcloud.cluster.predict import Estimate
from agentcloud.cluster.waiting import Group, Option, Waiter

#: Assumed wait for an endpoint that is down, until it is registered again.
DOWN_GUESS_S: Final = 30.0
#: No call is predicted to be shorter.
_TINY_S: Final = 1e-3


class Weighed(Candidate):
    """One option of a request with what it would take there.

    Attributes:
        state: the endpoint that could start it now; None when it must wait.
        limit_s: seconds until the account's limits admit it; 0.0 when they do.
        rate: calls a second that the class takes when saturated; counts only when waiting.
        delay_s: seconds until it takes calls at all (a cooldown, a limit).
        cached_tokens: prompt tokens that its cache is taken to hold.
    """

    __slots__ = (
        "cached_tokens",
        "delay_s",
        "estimate",
        "limit_s",
        "option",
        "rate",
        "state",
    )

    def __init__(
        self,
        name: str,
        cost_usd: float,
        option: Option,
        state: EndpointState | None,
        estimate: Estimate,
        felt_s: float,
        cached_tokens: int,
        others_s: float,
    ) -> None:
        worth = option.cls.burden.worth if others_s else 1.0
        super().__init__(name, cost_usd, 0.0, estimate.total_s, "", felt_s, others_s, worth)
        self.option = option
        self.state = state
        self.estimate = estimate
        self.limit_s = 0.0
        self.rate = 0.0
        self.delay_s = 0.0
        self.cached_tokens = cached_tokens


class Choice:
    """The best of the weighed options: `state` is where to start it now, None to wait on."""

    __slots__ = ("index", "weighed")

    def __init__(self, weighed: list[Weighed]) -> None:
        self.weighed = weighed
        self.index = 0

    @property
    def best(self) -> Weighed:
        """The chosen option."""
        return self.weighed[self.index]

    @property
    def state(self) -> EndpointState | None:
        """Where to start it now; None: waiting is better, or all there is."""
        return self.weighed[self.index].state

    def declined(self) -> bool:
        """Whether something was free and waiting seemed better."""
        return self.state is None and any(each.state is not None for each in self.weighed)


def weigh(group: Group, waiter: Waiter, now_s: float, usd_per_hour_waited: float) -> Choice:
    """Compare every option of a request.

    Without deadlines the waiting of a group is seen from its end: the request in front is given
    to a costlier endpoint as soon as the queue behind it is long enough to make that worth while.
    A request with a deadline is judged by its own place.
    """
    avoid = _effective_avoid(group, now_s) if group.avoid else group.avoid
    # Waiting for what is avoided would never end: it is free, and is not taken.
    options = [
        each
        for each in group.options
        if not avoid or any(name not in avoid for name in each.cls.members)
    ]
    weighed = [_weigh_option(group, waiter, option, avoid, now_s) for option in options]
    choice = Choice(weighed)
    if len(weighed) > 1:
        stuck = [each for each in weighed if each.state is None]
        if stuck:
            _add_waits(group, waiter, stuck)
        deadline_left_s = None if waiter.deadline_s is None else waiter.deadline_s - now_s
        choice.index = choose(weighed, waiter.policy, deadline_left_s, usd_per_hour_waited)
    return choice


class Reason(NamedTuple):
    """Why an option was chosen; put into words by whoever reads it, not by the scheduler.

    Attributes:
        before: words to stand in front.
        chosen: which of those considered.
        able: endpoints able to serve, all members of the classes counted.
        equals: members of the chosen class to pick from; 0: it was named.
        inflight: calls that the chosen one had.
        stream: judged by the time to the first token.
    """

    before: str
    chosen: int
    able: int
    policy: Policy
    deadline_left_s: float | None
    value_usd: float
    equals: int
    inflight: int
    known: bool
    stream: bool

    def words(self, considered: Sequence[Considered]) -> str:
        """What a person reads."""
        candidates = [
            Candidate(
                each.endpoint,
                each.cost_usd,
                each.wait_s,
                each.total_s - each.wait_s,
                each.not_now,
                each.ttft_s if self.stream else None,
                each.others_s,
                each.worth,
            )
            for each in considered
        ]
        peer = ""
        if self.equals > 1:
            peer = f"least busy of {self.equals} equals ({self.inflight} in flight)"
            if cached := considered[self.chosen].cached_tokens:
                peer = f"best of {self.equals} equals, with {cached} prompt tokens in its cache"
        other = runner_up(candidates, self.chosen, self.policy, self.value_usd)
        why = reason(
            candidates, self.chosen, self.able, self.policy, self.deadline_left_s, peer, other
        )
        return f"{self.before}{why}" if self.known else f"{self.before}{why}; no data yet, assumed"


def explain(
    choice: Choice, group: Group, waiter: Waiter, now_s: float, value_usd: float, before: str
) -> Reason:
    """Why it was chosen, to be put into words later."""
    best = choice.best
    named = best.state is None or group.pin is not None
    return Reason(
        before,
        choice.index,
        group.able,
        waiter.policy,
        None if waiter.deadline_s is None else waiter.deadline_s - now_s,
        value_usd,
        0 if named else len(best.option.cls.members),
        0 if best.state is None else best.state.inflight,
        best.estimate.known,
        waiter.request.stream,
    )


def considered(choice: Choice, now_s: float) -> tuple[Considered, ...]:
    """What was compared, to be told to those who ask why."""
    found = []
    for each in choice.weighed:
        estimate = each.estimate
        fields = (
            each.name,
            each.wait_s + each.service_s,
            each.wait_s,
            estimate.ttft_s if estimate.ttft_known else None,
            each.cost_usd,
            each.cached_tokens,
            each.others_s,
            each.worth,
            "" if each.state is not None else _standing(each, now_s),
        )
        # As `Considered(*fields)` makes it, at half the cost: this runs for every grant.
        found.append(tuple.__new__(Considered, fields))
    return tuple(found)


def _standing(each: Weighed, now_s: float) -> str:
    if each.limit_s > 0.0:
        return f"limited for {each.limit_s:.3g} s"
    return "has others waiting" if each.option.cls.has_room() else each.option.cls.tell(now_s)


def _weigh_option(
    group: Group, waiter: Waiter, option: Option, avoid: frozenset[str], now_s: float
) -> Weighed:
    request = waiter.request
    input_tokens, cls = request.input_tokens, option.cls
    output_tokens = cls.predictor.output_tokens(request.max_output_tokens)
    cost_usd = input_tokens * option.usd_per_input + output_tokens * option.usd_per_output
    found = _find(group, option, request, output_tokens, avoid, now_s)
    if found is None:
        estimate = cls.full_estimate(input_tokens, output_tokens)
        total_s = estimate.total_s
        cost_usd += total_s * cls.usd_per_s / cls.spec.max_concurrency
        name = group.pin or cls.name
        others_s = cls.full_others_s(input_tokens, now_s) if cls.is_local else 0.0
        each = Weighed(name, cost_usd, option, None, estimate, felt(estimate, request), 0, others_s)
        if not cls.slots:
            opens_s = cls.opens_in_s(now_s)
            each.delay_s = (cls.start_s or DOWN_GUESS_S) if opens_s is None else opens_s
    else:
        state, estimate = found.state, found.estimate
        total_s = estimate.total_s
        # A GPU that is paid for costs nothing more while it idles; a call on a busy one takes the
        # place of others and costs its share of the time. The square of the utilisation keeps
        # a half-used GPU nearly free.
        busy = state.inflight / cls.spec.max_concurrency
        cost_usd += total_s * cls.usd_per_s * busy * busy / (state.inflight + 1)
        name = state.spec.name
        each = Weighed(
            name,
            cost_usd,
            option,
            state,
            estimate,
            found.felt_s,
            found.cached_tokens,
            found.others_s,
        )
        # First come, first served at each endpoint: whoever waits for it goes first.
        front = cls.front()
        if front is not None and front is not group and front.front() < group.place(waiter):
            each.state = None
        elif cls.limiter is not None:
            limit_s = cls.limiter.wait_s(input_tokens, request.max_output_tokens, now_s)
            if limit_s > 0.0:
                each.state = None
                each.limit_s = each.delay_s = limit_s
    if each.state is None:
        each.rate = cls.slots / total_s if total_s > _TINY_S else cls.slots / _TINY_S
        if cls.limiter is not None:
            period_s = cls.limiter.period_s(input_tokens, output_tokens)
            if period_s * each.rate > 1.0:
                each.rate = 1.0 / period_s
    return each


def _find(
    group: Group,
    option: Option,
    request: LeaseRequest,
    output_tokens: float,
    avoid: frozenset[str],
    now_s: float,
) -> Pick | None:
    cls = option.cls
    if group.pin is None:
        return cls.pick(request, output_tokens, avoid, now_s)
    state = cls.members.get(group.pin)
    if state is None or not state.admits(now_s):
        return None
    cached = state.cached_tokens(request, now_s)
    estimate = state.estimate(request.input_tokens, output_tokens, now_s, cached)
    # Where there is no choice it does not matter how long others wait.
    return Pick(state, estimate, cached, felt(estimate, request), 0.0)


def _add_waits(group: Group, waiter: Waiter, stuck: list[Weighed]) -> None:
    """Predict the wait for options that are not free: one queue drained by all of them."""
    rate, ahead = 0.0, 1
    for each in stuck:
        rate += each.rate
        if each.option.cls.backlog > ahead:
            ahead = each.option.cls.backlog
    if group.has_deadline and group.head() is waiter:
        ahead = 1
    drain_s = ahead / rate if rate > 0.0 else 0.0
    for each in stuck:
        # A class that takes no calls now is waited for, then served at a pace nobody knows.
        each.wait_s = each.delay_s + drain_s


def _effective_avoid(group: Group, now_s: float) -> frozenset[str]:
    """The endpoints to avoid, or none when nothing else is answering: avoiding is a wish."""
    avoid = group.avoid
    for option in group.options:
        for name, state in option.cls.members.items():
            if name not in avoid and (state.circuit.is_answering or state.admits(now_s)):
                return avoid
    return frozenset()
