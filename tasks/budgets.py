"""The scheduler's budgets as a task uses them: its own cap, and what is left."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import ray

from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME, BudgetState
from agentcloud.cluster.errors import BackendError, ConfigError
from agentcloud.cluster.patience import asked


class Budgets:
    """Budgets of the running fleet.

    Args:
        scheduler: handle of the scheduler's actor.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    @classmethod
    def of_cluster(cls) -> Budgets:
        """Those of the cluster that this process is connected to.

        Raises:
            ConfigError: no fleet is up.
        """
        try:
            return cls(ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE))
        except ValueError:
            raise ConfigError(
                "no fleet is up on this cluster; `agentcloud up` starts one"
            ) from None

    async def open(self, path: tuple[str, ...], limit_usd: Decimal | None) -> None:
        """Open a budget, or change the cap of an open one; what it has spent stays.

        Raises:
            BackendError: the scheduler does not answer.
        """
        try:
            await asked(lambda: self._scheduler.open_budget.remote(path, limit_usd))
        except ray.exceptions.RayError as error:
            raise _silent(error) from None

    async def close(self, path: tuple[str, ...]) -> None:
        """Forget a budget and those below it; nothing to do where the scheduler is gone."""
        with contextlib.suppress(ray.exceptions.RayError):
            await asked(lambda: self._scheduler.close_budget.remote(path))

    async def fleet_id(self) -> str:
        """Id of the fleet that they are of.

        Raises:
            BackendError: the scheduler does not answer.
        """
        try:
            return str(await asked(self._scheduler.fleet_id.remote))
        except ray.exceptions.RayError as error:
            raise _silent(error) from None

    async def used_usd(self, path: tuple[str, ...]) -> Decimal:
        """What a budget has spent, what is open or unknown at its reservation; 0: there is none."""
        scope = "/".join(path)
        with contextlib.suppress(BackendError):
            for state in await self.states():
                if state.scope == scope:
                    return state.spent_usd + state.reserved_usd + state.unknown_usd
        return Decimal(0)

    async def states(self) -> list[BudgetState]:
        """All open budgets.

        Raises:
            BackendError: the scheduler does not answer.
        """
        try:
            states: list[BudgetState] = await asked(self._scheduler.budgets.remote)
        except ray.exceptions.RayError as error:
            raise _silent(error) from None
        return states


def _silent(error: ray.exceptions.RayError) -> BackendError:
    return BackendError(f"the scheduler does not answer ({type(error).__name__})")
