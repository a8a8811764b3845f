"""What a worker's process does: it runs many agent tasks at once.

The worker pulls: one call to its supervisor brings outcomes there and new tasks back, so the
driver's cost per task is a fraction of an actor call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Coroutine
from typing import Any

import ray
import structlog

from agentcloud.agents.agent import Agent, load_agent
from agentcloud.agents.mcp_shared import McpServers
from agentcloud.cluster.batch_client import calls_waiting
from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.logs import configure_logs
from agentcloud.tasks.attempt import attempt_task
from agentcloud.tasks.budgets import Budgets
from agentcloud.tasks.ledger_client import LedgerClient
from agentcloud.tasks.spec import JobSpec, TaskResult

log = structlog.get_logger()

#: Outcomes that arrive so close together travel together, seconds.
GATHER_S = 0.01
#: A worker with room but nothing to do asks again after this, seconds.
IDLE_S = 0.25
#: Tasks that wait for batches take no room, up to so many tasks in a worker.
MOST_TASKS = 10_000


class Worker:
    """The body of a worker actor (worker_actor.py).

    Args:
        name: its actor name, `worker:<job>:<i>`.
        spec: the job.
        room: tasks it runs at once, those that wait for batches left out.
        supervisor: handle of the job's supervisor.
        epoch: of the job's run.
    """

    def __init__(self, name: str, spec: JobSpec, room: int, supervisor: Any, epoch: int) -> None:
        configure_logs(actor=name)
        self._name = name
        self._spec = spec
        self._room = room
        self._supervisor = supervisor
        self._ledger = LedgerClient(spec.job_id, epoch)
        self._servers = McpServers()
        self._running: set[asyncio.Task[TaskResult]] = set()
        self._ended: list[TaskResult] = []
        self._wake = asyncio.Event()
        self._cancelled = False

    def __repr__(self) -> str:
        return self._name

    async def run(self) -> None:
        """Work until the supervisor has nothing more.

        Raises:
            ConfigError: the agent cannot be loaded, or no fleet is up.
        """
        agent = self._load()
        budgets = Budgets.of_cluster()
        async with contextlib.AsyncExitStack() as stack:
            client = AsyncAgentCloud()
            stack.push_async_callback(client.close)
            await stack.enter_async_context(self._servers)
            while not await self._exchange(agent, client, budgets):
                await self._wait_for_news()

    async def cancel(self) -> None:
        """Cancel every running task: its calls are aborted where they run."""
        self._cancelled = True
        for task in self._running:
            task.cancel()
        self._wake.set()

    def _load(self) -> Agent[Any]:
        if self._spec.folder is not None:
            os.chdir(self._spec.folder)
        here = str(self._spec.folder or os.getcwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        return load_agent(self._spec.agent)

    async def _exchange(self, agent: Agent[Any], client: AsyncAgentCloud, budgets: Budgets) -> bool:
        """Bring outcomes, fetch tasks; returns whether the work is over."""
        ended, self._ended = self._ended, []
        room = 0 if self._cancelled else self._free()
        try:
            handout = await self._supervisor.exchange.remote(self._name, ended, room)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayActorError as error:
            # What was handed out is not known: what it runs is started again, by another worker.
            log.warning("lost the supervisor, ending", why=type(error).__name__)
            os._exit(1)
        for task in handout.tasks:
            self._start(
                attempt_task(agent, client, self._spec, task, budgets, self._ledger, self._servers)
            )
        return bool(handout.is_over) and not self._running and not self._ended

    def _free(self) -> int:
        """Tasks that may start now.

        A task whose calls wait for a batch does nothing for hours: others take its place, so that
        a job's calls meet in few large batches instead of `concurrency` at a time.
        """
        running = len(self._running)
        busy = running - min(running, calls_waiting())
        return max(0, min(self._room - busy, max(self._room, MOST_TASKS) - running))

    def _start(self, attempt: Coroutine[Any, Any, TaskResult]) -> None:
        running = asyncio.create_task(attempt)
        self._running.add(running)
        running.add_done_callback(self._on_end)
        if self._cancelled:
            running.cancel()

    def _on_end(self, task: asyncio.Task[TaskResult]) -> None:
        self._running.discard(task)
        if not task.cancelled():  # cancelled before its first step: the supervisor drops it
            self._ended.append(task.result())
        self._wake.set()

    async def _wait_for_news(self) -> None:
        # Full: sleep until a task ends, or waits for a batch. With room: ask again soon, a dead
        # worker's tasks or passing failures may have come back.
        while True:
            had_room = self._free() > 0
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._wake.wait()
                    await asyncio.sleep(GATHER_S)
            except TimeoutError:
                if not had_room and not self._free():
                    continue
            self._wake.clear()
            return
