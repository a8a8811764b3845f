"""The scheduler's actor as those see it who run it: endpoints, budgets, looking at it.

These methods have a concurrency group of their own, so that calls and streams never keep them
waiting.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeVar

import ray

from agentcloud.cluster.alarm_watch import AlarmWatch, TaskFacts
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import Clock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    BudgetState,
    EndpointSpec,
    LoadReport,
    Outcome,
    Settlement,
)
from agentcloud.cluster.demand import Demand, Expected
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.prefix import Change
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.cluster.scheduler_holders import Holders

_NOTHING_TOLD: Final[Mapping[str, Sequence[Change | None]]] = {}

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _control(method: _Method) -> _Method:
    """Run a method in the group of its own, which calls and streams cannot fill."""
    decorated: _Method = ray.method(concurrency_group="control")(method)
    return decorated


class SchedulerControl(ABC):
    """What the fleet, jobs, the command line and dashboards ask of it."""

    _core: SchedulerCore
    _lock: threading.Lock
    _clock: Clock
    _holders: Holders
    _alarms: AlarmWatch
    _epoch: str
    _fleet: str | None
    #: Why nothing is scheduled; None: all is well.
    _broken: ConfigError | None
    #: Whether the fleet has told which models may have replicas.
    _told: bool

    @abstractmethod
    def _changed(self) -> None:
        """Something may have become possible; called under the lock."""

    @_control
    async def ping(self) -> str:
        """This instance's id; another one after a restart, which has no endpoints yet.

        Raises:
            ConfigError: its store cannot be used.
        """
        if self._broken is not None:
            raise self._broken
        return self._epoch

    @_control
    async def fleet_id(self) -> str:
        """Id of the fleet, under which the store keeps its budgets; empty: it keeps none."""
        return self._fleet or ""

    @_control
    async def configure(self, config: FleetConfig) -> None:
        """Take another fleet.yaml."""
        catalog = load_catalog().with_overrides(config.hosted)
        with self._lock:
            self._core.configure(config, catalog)
            self._changed()
        self._alarms.configure(config.alarms)

    @_control
    async def config(self) -> FleetConfig:
        """The fleet.yaml in force."""
        return self._core.config

    @_control
    async def register(self, specs: list[EndpointSpec]) -> None:
        """As `SchedulerCore.register`."""
        with self._lock:
            self._core.register(specs)
            self._changed()

    @_control
    async def unregister(self, names: list[str]) -> None:
        """As `SchedulerCore.unregister`."""
        with self._lock:
            self._core.unregister(names)
            self._changed()

    @_control
    async def expect(self, expected: list[Expected], specs: list[EndpointSpec]) -> None:
        """As `SchedulerCore.expect`, and `register` before it: nobody is refused in between."""
        with self._lock:
            self._told = True
            self._core.register(specs)
            self._core.expect(expected)
            self._changed()

    @_control
    async def demand(self) -> Demand:
        """As `SchedulerCore.demand`."""
        with self._lock:
            return self._core.demand()

    @_control
    async def open_leases(self, name: str) -> int:
        """As `SchedulerCore.open_leases`."""
        with self._lock:
            return self._core.open_leases(name)

    @_control
    async def report_load(
        self,
        loads: Mapping[str, LoadReport],
        prefixes: Mapping[str, Sequence[Change | None]] = _NOTHING_TOLD,
    ) -> None:
        """As `SchedulerCore.report_load`, and `report_prefixes` of each change in turn."""
        with self._lock:
            self._core.report_load(loads)
            for name, changes in prefixes.items():
                for change in changes:
                    self._core.report_prefixes({name: change})

    @_control
    async def mark_down(self, name: str, why: str) -> None:
        """As `SchedulerCore.mark_down`."""
        with self._lock:
            self._core.mark_down(name, why)
            self._changed()

    @_control
    async def reconcile(self, costs: Sequence[tuple[str, Decimal]]) -> None:
        """Tell what leases have cost whose holders died before they told it; USD by lease."""
        with self._lock:
            for lease_id, cost_usd in costs:
                self._core.settle(Settlement(lease_id, Outcome.OK, cost_usd=cost_usd))
            self._changed()

    @_control
    async def open_budget(self, path: tuple[str, ...], limit_usd: Decimal | None) -> None:
        """As `SchedulerCore.open_budget`."""
        with self._lock:
            self._core.open_budget(tuple(path), limit_usd)
            self._changed()

    @_control
    async def close_budget(self, path: tuple[str, ...]) -> None:
        """As `SchedulerCore.close_budget`."""
        with self._lock:
            self._core.close_budget(tuple(path))
            self._changed()

    @_control
    async def budgets(self) -> list[BudgetState]:
        """As `SchedulerCore.budgets`."""
        with self._lock:
            return self._core.budgets()

    @_control
    async def explain(self, call: str) -> dict[str, Any] | None:
        """As `SchedulerCore.explain`."""
        with self._lock:
            return self._core.explain(call)

    @_control
    async def tasks_ended(self, kind: str, facts: list[TaskFacts]) -> None:
        """As `AlarmWatch.tasks_ended`."""
        self._alarms.tasks_ended(kind, facts)

    @_control
    async def alarms(self, baselines: bool = False) -> dict[str, Any]:
        """As `AlarmWatch.report`."""
        return self._alarms.report(baselines=baselines)

    @_control
    async def snapshot(self) -> dict[str, Any]:
        """As `SchedulerCore.snapshot`, with the processes that are heard of."""
        now_s = self._clock.now()
        with self._lock:
            shown = self._core.snapshot()
            shown["holders"] = self._holders.silent_s(now_s)
        return shown
