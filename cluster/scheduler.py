"""Pure: the scheduler as one synchronous state machine, no I/O.

It decides for every call where it runs and holds slot, rate-limit tokens and money for it. The
shells around it (`scheduler_actor.py` on Ray, `LocalScheduler` in a process) deliver what `poll`
returns. Not thread-safe: a shell calls it from one thread at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

from agentcloud.cluster.budget import BudgetTree
from agentcloud.cluster.circuit import Standing
from agentcloud.cluster.clock import Clock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    BudgetState,
    EndpointSpec,
    Lease,
    LeaseRequest,
    LoadReport,
    Outcome,
    Settlement,
)
from agentcloud.cluster.decisions import Decision, Granted, Refused
from agentcloud.cluster.demand import Demand, Expected
from agentcloud.cluster.demand_book import DemandBook
from agentcloud.cluster.dispatch import Dispatcher
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.errors import AgentCloudError, NoEndpoint, QueueFull, RetriesSpent
from agentcloud.cluster.explain import ExplainBook
from agentcloud.cluster.fallback import Fallbacks
from agentcloud.cluster.former import FormerLeases, Held
from agentcloud.cluster.hedging import Hedges
from agentcloud.cluster.hosted_cache import HostedCache
from agentcloud.cluster.journal import Batch, Journal, Saved
from agentcloud.cluster.lateness import Lateness
from agentcloud.cluster.leases import Expired, LeaseBook
from agentcloud.cluster.leases import Granted as OpenLease
from agentcloud.cluster.policy import TIME_WEIGHT
from agentcloud.cluster.prefix import Change
from agentcloud.cluster.registry import Pricer, Registry
from agentcloud.cluster.rerouting import Rerouting
from agentcloud.cluster.retry_quota import RetryQuotas
from agentcloud.cluster.shortage import Shortage
from agentcloud.cluster.standing import Totals, overview
from agentcloud.cluster.waiting import Waiter
from agentcloud.cluster.weighing import Choice, explain

#: An endpoint that is down for so long is given up: those that wait for nothing else are refused.
DOWN_PATIENCE_S: Final = 600.0

#: An endpoint with so much of its room taken gives no leases in advance.
SPARE_ROOM: Final = 0.75


class SchedulerCore:
    """Where every call runs: submit requests, poll decisions, settle leases.

    Guarantees: a lease holds its worst case at every budget of its path and at its account's
    limits; at each endpoint requests are served first come first served within a priority; a
    request that waits for one endpoint never holds up a request that another can serve; a lease
    that nobody settles ends.
    """

    def __init__(
        self,
        config: FleetConfig,
        pricer: Pricer,
        clock: Clock,
        rng: random.Random,
        wall: Callable[[], float] | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Start with no endpoints.

        Args:
            config: fleet.yaml.
            pricer: the catalogue, with fleet.yaml's overrides.
            clock: only `now` is used.
            rng: names this scheduler's leases apart from those of one before it.
            wall: seconds since 1970, to read the dates of limit headers; None: they are ignored.
            journal: notes what is to be on disk, for `recorded`; None: nothing is.
        """
        self._clock = clock
        self._wall = wall
        self._registry = Registry(config, pricer)
        self._journal = journal
        self._budgets = BudgetTree(config.fleet_budget_usd, journal.touched if journal else None)
        self._leases = LeaseBook(self._budgets, rng, self._take_out_unusable, journal)
        self._former = FormerLeases(self._budgets, journal, self._registry, self._leases)
        self._dispatcher = Dispatcher(
            self._registry, self._conclude, self._refuse_unable, self._refuse_too_late
        )
        self._waiters: dict[str, Waiter] = {}
        self._hedges = Hedges(config.hedge)
        self._hedging: list[Waiter] = []
        self._fallbacks = Fallbacks(self._registry, config.fallbacks)
        self._quotas = RetryQuotas(config.retry.ratio, config.retry.allowance)
        self._rerouting = Rerouting(self._fallbacks, self._dispatcher, self._waiters)
        self._shortage = Shortage(self._registry, self._budgets, self._dispatcher, self._refuse)
        self._cache = HostedCache(self._registry)
        self._lateness = Lateness()
        self._explained = ExplainBook()
        self._demand = DemandBook()
        self._decisions: list[Decision] = []
        self._seq = 0
        self._refused = 0

    @property
    def config(self) -> FleetConfig:
        """The fleet.yaml in force."""
        return self._registry.config

    # -- endpoints

    def configure(self, config: FleetConfig, pricer: Pricer) -> None:
        """Take another fleet.yaml and its prices."""
        self._registry.configure(config, pricer)
        self._budgets.open((), config.fleet_budget_usd)
        self._quotas.configure(config.retry.ratio, config.retry.allowance)
        self._fallbacks.configure(config.fallbacks)
        self._hedges.configure(config.hedge)
        self._dispatcher.fairness.weights = config.weights
        self._rerouting.retarget(self._clock.now())

    def register(self, specs: Iterable[EndpointSpec]) -> None:
        """Add endpoints, or bring them back with a clean record."""
        now_s = self._clock.now()
        for spec in specs:
            self._dispatcher.freed(self._registry.register(spec, now_s).cls)
            self._former.registered(spec.name, now_s)
            self._rerouting.forget(spec.name)
        self._rerouting.retarget(now_s)

    def unregister(self, names: Iterable[str]) -> None:
        """Forget endpoints; requests that nothing else can serve are refused."""
        for name in names:
            self._registry.unregister(name, self._clock.now())
            self._rerouting.forget(name)
        self._rerouting.retarget(self._clock.now())

    def expect(self, expected: Iterable[Expected]) -> None:
        """Take the local models that may have replicas: where none runs, requests wait for one."""
        self._registry.expect(expected, self._clock.now())
        self._rerouting.retarget(self._clock.now())

    def report_load(self, loads: Mapping[str, LoadReport]) -> None:
        """Take load reports in; their `at_s` is overwritten by this clock."""
        now_s = self._clock.now()
        self._registry.report(
            {
                name: LoadReport(
                    load.running,
                    load.waiting,
                    load.kv_used_fraction,
                    load.tokens_done,
                    load.prompt_tokens_queued,
                    load.progress_age_s,
                    now_s,
                )
                for name, load in loads.items()
            },
            now_s,
        )

    def report_prefixes(self, told: Mapping[str, Change | None]) -> None:
        """Take in what replicas have stored in their prefix caches, and what they have evicted."""
        now_s = self._clock.now()
        for name, change in told.items():
            state = self._registry.endpoints.get(name)
            if state is not None:
                state.cls.prefixes.told(state, change, now_s)

    def mark_down(self, name: str, why: str) -> None:
        """Give an endpoint no calls until it is registered again; requests wait for it."""
        now_s = self._clock.now()
        self._registry.take_out(name, Standing.DOWN, why, now_s)
        state = self._registry.endpoints.get(name)
        if state is not None:
            self._dispatcher.at(now_s + DOWN_PATIENCE_S, self._give_up, state)
            self._dispatcher.freed_all()
            self._rerouting.retarget(now_s)

    # -- budgets

    def open_budget(self, path: tuple[str, ...], limit_usd: Decimal | None) -> None:
        """Create a budget, or change its cap."""
        self._budgets.open(path, limit_usd)
        self._shortage.came_back(everything=True)

    def close_budget(self, path: tuple[str, ...]) -> None:
        """Forget a budget and those below it; what they spent stays charged above."""
        self._budgets.close(path)
        self._shortage.came_back(everything=True)

    def budgets(self) -> list[BudgetState]:
        """All open budgets, the fleet's first."""
        return self._budgets.states()

    # -- what outlives this instance

    def recorded(self) -> Batch | None:
        """What is to be on disk since it was asked last; before a paid lease reaches its holder."""
        return None if self._journal is None else self._journal.drain(self._budgets)

    def restore(self, saved: Saved) -> set[str]:
        """Go on where an earlier instance ended; call first of all.

        Returns:
            The processes whose paid leases came back.
        """
        return self._former.restore(saved, self._clock.now())

    def adopt(self, held: Iterable[Held]) -> None:
        """Count leases of an earlier instance that their holders still have."""
        self._former.adopt(held, self._clock.now())

    # -- calls

    def submit(self, request: LeaseRequest) -> None:
        """Ask for a lease; `poll` brings the decision, now or later.

        The same attempt told twice is one request; its open lease is given again.
        """
        if self._former:
            self._former.never_sent(request.call_id)
        held = self._leases.held_for(request)
        if held is not None:
            self._decisions.append(Granted(held, request.holder))
            return
        if request.call_id in self._waiters:
            return
        now_s, config = self._clock.now(), self._registry.config
        deadline_s = request.routing.deadline_s
        self._seq += 1
        asked = self._registry.target(request)
        target, why_target = asked, ""
        if self._fallbacks:
            chosen = self._fallbacks.choose(request, asked, now_s)
            target, why_target = chosen.name, chosen.why
        waiter = Waiter(
            request,
            self._seq,
            now_s,
            None if deadline_s is None else now_s + deadline_s,
            target,
            request.routing.policy or config.policy,
            asked,
            why_target,
        )
        self._waiters[request.call_id] = waiter
        if request.prefix:
            self._cache.came(request)
        if len(self._waiters) > config.max_waiting:
            self._refuse(waiter, _full(config.max_waiting))
            return
        if request.spare:
            self._hedging.append(waiter)
        elif request.hedge:
            if not self._hedges.has():
                self._refuse(waiter, NoEndpoint("the share of calls that may be hedged is used up"))
                return
            self._hedging.append(waiter)
        self._dispatcher.add(waiter)

    def bind(self, lease_id: str, request: LeaseRequest) -> None:
        """A call took a lease that was granted in advance."""
        lease = self._leases.bind(lease_id, request)
        if lease is not None:
            self._quotas.first(lease.endpoint.name)
            self._explained.granted(request, self._registry.target(request), lease)

    def _may_spare(self, state: EndpointState | None) -> bool:
        """Whether an endpoint gives a lease in advance: it is local, has room, and nobody waits."""
        if state is None or not state.cls.is_local:
            return False
        waiting = len(self._waiters) - sum(not each.decided for each in self._hedging)
        return not waiting and state.inflight < SPARE_ROOM * state.concurrency.limit

    def cancel(self, call_id: str) -> bool:
        """Forget a waiting request; False if it does not wait (its lease must be settled)."""
        waiter = self._waiters.get(call_id)
        if waiter is None:
            if self._former:
                self._former.never_sent(call_id)
            return False
        self._decided(waiter)
        return True

    def settle(self, settlement: Settlement) -> OpenLease | None:
        """Tell the truth about a lease; an unknown or settled one changes nothing.

        Returns:
            The lease that this ended.
        """
        now_s = self._clock.now()
        wall_s = self._wall() if self._wall is not None and settlement.limit_headers else None
        if self._former and self._former.settle(settlement, now_s, wall_s):
            self._shortage.came_back()
            return None
        ended = self._leases.settle(settlement, now_s, wall_s)
        if ended is not None:
            self._slot_freed(ended.state)
            if ended.lease.warms:
                # Without a stream nobody hears of a first token before the end.
                self.warmed(settlement.lease_id, written=settlement.outcome is Outcome.OK)
            self._explained.settled(ended.lease.call_id, settlement.lease_id, settlement)
            if settlement.outcome is Outcome.OK or settlement.beaten:
                self._hedges.learn(ended.state.cls, now_s - ended.granted_s)
            self._rerouting.heard_of(ended.state, now_s)
        self._shortage.came_back()
        return ended

    def warmed(self, lease_id: str, *, written: bool = True) -> None:
        """The first token of a call that writes a hosted cache is there, or it ended (so or so)."""
        for waiter in reversed(self._cache.ended(lease_id, self._clock.now(), written=written)):
            self._let_go(waiter, 0.0)

    def expire(self) -> list[Expired]:
        """End leases whose time has passed; their calls should be aborted."""
        if self._former and self._former.expire(self._clock.now()):
            self._shortage.came_back()
        return self._ended(self._leases.expire(self._clock.now()))

    def drop_holder(self, holder: str) -> list[Expired]:
        """Forget what a dead process waits for, and end its leases."""
        for call_id, waiter in list(self._waiters.items()):
            if waiter.request.holder == holder:
                self.cancel(call_id)
        self._former.drop_holder(holder)
        return self._ended(self._leases.drop_holder(holder, self._clock.now()))

    def poll(self) -> Sequence[Decision]:
        """Decide all that can be decided now, each request once."""
        self._dispatcher.run(self._clock.now())
        while self._shortage.has_more():
            self._dispatcher.run(self._clock.now())
        hedging, self._hedging = self._hedging, []
        for waiter in hedging:
            if not waiter.decided:
                # Waiting its turn it would come too late, and hold up calls that have no answer.
                what = "a lease in advance" if waiter.request.spare else "a second send"
                self._refuse(waiter, NoEndpoint(f"no other endpoint is free for {what}"))
        decisions, self._decisions = self._decisions, []
        return decisions

    def next_wake_s(self) -> float | None:
        """Clock time at which `expire` and `poll` should be called, without any other event."""
        times = [
            at_s
            for at_s in (
                self._dispatcher.next_timer_s(),
                self._leases.next_expiry_s(),
                self._former.next_expiry_s() if self._former else None,
            )
            if at_s is not None
        ]
        return min(times) if times else None

    def next_wake_in_s(self) -> float | None:
        """Seconds until `next_wake_s`, not negative."""
        wake_s = self.next_wake_s()
        return None if wake_s is None else max(0.0, wake_s - self._clock.now())

    # -- looking at it

    @property
    def waiting(self) -> int:
        """Requests without a decision."""
        return len(self._waiters)

    @property
    def inflight(self) -> int:
        """Leases without a settlement."""
        return len(self._leases) + len(self._former)

    def open_leases(self, name: str) -> int:
        """Calls that an endpoint still has, also after it was unregistered."""
        return self._leases.count(name)

    @property
    def registry(self) -> Registry:
        """Endpoints and limits, to look at."""
        return self._registry

    @property
    def totals(self) -> Mapping[str, Totals]:
        """What each endpoint has done, those that are gone too, to look at."""
        return self._leases.totals

    def endpoint(self, name: str) -> EndpointState:
        """An endpoint's state, to look at."""
        return self._registry.endpoints[name]

    def demand(self) -> Demand:
        """The load on local models, for whoever scales them."""
        return self._demand.demand(self._registry.classes.values(), self._dispatcher.groups())

    def explain(self, call: str) -> dict[str, Any] | None:
        """Why a call went where it went; None: it is not, or no longer, known."""
        return self._explained.explain(call, self._registry)

    def snapshot(self) -> dict[str, Any]:
        """Everything a person or a dashboard wants to see, JSON-able."""
        return {
            **overview(self._registry, self._leases.totals, self.budgets(), self._clock.now()),
            "waiting": self.waiting,
            "waiting_for_budget": len(self._shortage),
            "inflight": self.inflight,
            "refused": self._refused,
            "later_sends_left": {
                name: self._quotas.left(name) for name in self._registry.endpoints
            },
            "stale_settlements": self._leases.stale_settlements,
        }

    def __repr__(self) -> str:
        return (
            f"<SchedulerCore endpoints={len(self._registry.endpoints)} waiting={self.waiting} "
            f"inflight={self.inflight}>"
        )

    # -- deciding

    def _conclude(self, waiter: Waiter, choice: Choice) -> bool:
        """Grant the chosen endpoint, or see to what is in the way; whether it was seen to."""
        request, best = waiter.request, choice.best
        worst, obstacle = self._shortage.look(request, best.option.cls.spec)
        now_s = self._clock.now()
        if request.spare and not self._may_spare(choice.state):
            self._refuse(waiter, NoEndpoint("no room for a lease in advance"))
        elif request.hedge and (best.name in request.avoid or not self._quotas.has(best.name)):
            why_not = "no other endpoint or retry quota is left for a second send"
            self._refuse(waiter, NoEndpoint(why_not))
        elif obstacle is not None:
            self._shortage.hold(waiter, obstacle, worst)
        elif request.is_later and not self._quotas.has(best.name):
            self._blocked_by_quota(waiter, best.name)
        elif not self._held_for_cache(waiter, choice, now_s):
            self._grant(waiter, choice, worst, now_s)
        return True

    def _grant(self, waiter: Waiter, choice: Choice, worst: Decimal, now_s: float) -> None:
        request, best, spec = waiter.request, choice.best, choice.best.option.cls.spec
        assert waiter.group is not None
        reused, warms = self._cache.reuse(request, choice, now_s)
        before = "second send beside a slow one: " if request.hedge else ""
        if waiter.is_fallback:
            before = f"{before}fallback from {waiter.asked} ({waiter.why_target}): "
        value_usd = self._registry.usd_per_hour_waited
        why = explain(choice, waiter.group, waiter, now_s, value_usd, before)
        timeout_s = request.routing.timeout_s or spec.timeout_s or self.config.retry.timeout_s
        # A batch is slow on purpose.
        idempotent = request.routing.idempotent and not request.hedge and not spec.batch
        probes = choice.state is not None and not choice.state.circuit.is_answering
        lease = self._leases.grant(
            request,
            choice,
            worst,
            why,
            waiter.submitted_s,
            timeout_s + self.config.lease_timeout_s,
            now_s,
            waiter.asked if waiter.is_fallback else None,
            self._hedges.after_s(best.option.cls) if idempotent else None,
            reused,
            warms,
        )
        if warms:
            prefix, ttft_s = request.prefix[:reused], lease.predicted_ttft_s
            self._cache.writes(lease.lease_id, best.name, prefix, ttft_s, now_s)
        self._count(waiter, choice, lease, now_s, idempotent=idempotent)
        self._decided(waiter)
        self._decisions.append(Granted(lease, request.holder))
        if probes:
            # Those that came for the same chance need not wait for what it shows.
            self._rerouting.retarget(now_s)

    def _count(
        self, waiter: Waiter, choice: Choice, lease: Lease, now_s: float, *, idempotent: bool
    ) -> None:
        """Charge a grant to shares and quotas, and remember why it was made."""
        request, best = waiter.request, choice.best
        assert waiter.group is not None
        self._demand.granted(choice, request.input_tokens)
        if choice.state is not None and choice.state.cls.is_local:
            work_s = choice.state.work_s(request.input_tokens, best.cached_tokens)
            worth = TIME_WEIGHT[waiter.policy]
            choice.state.cls.burden.came(work_s, worth, now_s)
        if self._dispatcher.waiting > 1:
            cost_s = best.estimate.total_s / max(1, best.option.cls.slots)
            self._dispatcher.fairness.served(waiter.group.flow, request.routing.priority, cost_s)
        if request.is_later:
            self._quotas.later(best.name)
        elif request.attempt == 1 and not request.spare:
            self._quotas.first(best.name)
            if idempotent:
                self._hedges.first()
        if request.hedge:
            self._hedges.take()
        if not request.spare:
            self._explained.granted(request, waiter.target, lease)

    def _held_for_cache(self, waiter: Waiter, choice: Choice, now_s: float) -> bool:
        """Hold a call back for one that writes what it will read, where that pays."""
        if not waiter.request.prefix:
            return False
        until_s = self._cache.hold_until(waiter, choice, now_s)
        if until_s is None:
            return False
        self._dispatcher.remove(waiter)
        self._dispatcher.at(until_s, self._let_go, waiter)
        return True

    def _let_go(self, waiter: Waiter, _now_s: float) -> None:
        if waiter.held and not waiter.decided:
            waiter.held = False
            self._dispatcher.add(waiter, first=True)

    def _blocked_by_quota(self, waiter: Waiter, name: str) -> None:
        # Two cases: another endpoint may do (this one is avoided, which is a wish), or it is
        # chosen a second time, because nothing else is answering.
        self._dispatcher.remove(waiter)
        if name in waiter.spent:
            self._refuse(waiter, RetriesSpent(self._quotas.tell(name), why={name: "retry quota"}))
            return
        waiter.spent |= {name}
        waiter.request = replace(waiter.request, avoid=waiter.request.avoid | {name})
        self._rerouting.moves(waiter, self._clock.now())
        self._dispatcher.add(waiter)

    def _refuse_too_late(self, waiter: Waiter, choice: Choice, now_s: float) -> bool:
        """Refuse a call that no endpoint can answer in time, before anything is spent on it."""
        error = self._lateness.judge(waiter, choice, now_s)
        if error is None:
            return False
        self._refuse(waiter, error)
        return True

    def _refuse_unable(self, waiter: Waiter) -> None:
        if self._rerouting.moves(waiter, self._clock.now()):
            self._dispatcher.add(waiter)
            return
        error = self._registry.refusal(waiter.request, waiter.asked)
        if chain := self._fallbacks.chain(waiter.request, waiter.asked):
            said = f"{error}; nor can what it falls back to: {', '.join(chain)}"
            error = NoEndpoint(said, why=error.why)
        self._refuse(waiter, error)

    def _refuse(self, waiter: Waiter, error: AgentCloudError) -> None:
        if not waiter.request.spare:
            self._refused += 1
            self._explained.refused(waiter.request, waiter.target, str(error))
        self._decided(waiter)
        self._decisions.append(Refused(waiter.request.call_id, waiter.request.holder, error))

    def _decided(self, waiter: Waiter) -> None:
        waiter.decided = True
        self._shortage.decided(waiter)
        if waiter.request.prefix:
            self._cache.decided(waiter.request)
        self._dispatcher.remove(waiter)
        self._waiters.pop(waiter.request.call_id, None)

    # -- endpoints' health

    def _ended(self, ended: list[Expired]) -> list[Expired]:
        for each in ended:
            self._slot_freed(each.state)
            self.warmed(each.lease_id, written=False)
            self._explained.settled(each.call_id, each.lease_id, None)
        if ended:
            self._shortage.came_back()
        return ended

    def _slot_freed(self, state: EndpointState) -> None:
        self._dispatcher.freed(state.cls)
        if state.circuit.standing is Standing.COOLING:
            at_s = max(state.circuit.until_s, self._clock.now())
            self._dispatcher.at(at_s, self._cooled, state)

    def _cooled(self, state: EndpointState, now_s: float) -> None:
        state.cls.place(state, now_s)
        self._dispatcher.freed(state.cls)

    def _give_up(self, state: EndpointState, now_s: float) -> None:
        name = state.spec.name
        if self._registry.endpoints.get(name) is state and state.circuit.standing is Standing.DOWN:
            why = f"down for {DOWN_PATIENCE_S:.0f} s: {state.circuit.why}"
            self._registry.take_out(name, Standing.UNUSABLE, why, now_s)

    def _take_out_unusable(self, name: str, why: str, now_s: float) -> None:
        self._registry.take_out(name, Standing.UNUSABLE, why, now_s)


def _full(limit: int) -> QueueFull:
    return QueueFull(
        f"{limit} calls wait at the scheduler, which is all that max_waiting of fleet.yaml allows; "
        f"add capacity or run fewer at once",
        retry_after_s=1.0,
    )
