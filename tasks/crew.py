"""The workers of one run of a job: started, watched, replaced where they die, ended."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import ray
import structlog

from agentcloud.cluster.contracts import RAY_NAMESPACE
from agentcloud.cluster.errors import AgentCloudError, one_line
from agentcloud.tasks.board import Board
from agentcloud.tasks.spec import JobSpec
from agentcloud.tasks.worker_actor import WorkerActor

#: Workers that die one after another with no task on them: the job cannot run here.
MAX_IDLE_DEATHS: Final = 3
#: What Ray says of a worker whose machine is gone.
NODE_DIED: Final = "its node has died"
#: Why a job stops: it cannot go on.
ERROR: Final = "error"

log = structlog.get_logger()


class Crew:
    """Lives in the supervisor's process: its workers bring their outcomes there.

    Args:
        spec: the job.
        epoch: of its run.
        board: is told which worker lost its tasks, and that the job stops where none can run.
        write: writes what has ended on the board.

    Attributes:
        lost: workers that died and were, or would have been, replaced.
    """

    def __init__(
        self, spec: JobSpec, epoch: int, board: Board, write: Callable[[], Awaitable[None]]
    ) -> None:
        self.lost = 0
        self._spec = spec
        self._epoch = epoch
        self._board = board
        self._write = write
        self._workers: dict[str, Any] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._spawned = 0
        self._idle_deaths = 0

    def __repr__(self) -> str:
        return (
            f"<Crew {self._spec.job_id}/{self._epoch}, {len(self._workers)} at work, "
            f"{self.lost} lost>"
        )

    def __contains__(self, worker: str) -> bool:
        return worker in self._workers

    @property
    def is_at_work(self) -> bool:
        """Whether any worker has not ended."""
        return bool(self._watchers)

    def start(self) -> None:
        """Start the job's workers."""
        for _ in range(self._spec.workers):
            self._spawn()

    def worked(self) -> None:
        """A worker brought outcomes: they can run here."""
        self._idle_deaths = 0

    async def wait(self, timeout_s: float) -> None:
        """Wait until a worker has ended, or for so long."""
        await asyncio.wait(self._watchers, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    def fail(self, detail: str) -> None:
        """Stop the job, unless it stops already: it cannot go on."""
        if self._board.stop_reason is None:
            self._board.stop(ERROR, detail)
            self._cancel_tasks()

    async def cancel(self) -> None:
        """Have every worker cancel its tasks."""
        with contextlib.suppress(ray.exceptions.RayError):
            await asyncio.gather(*self._cancel_tasks())

    def end(self) -> None:
        """Kill who is still there, whatever they are doing."""
        for name, worker in list(self._workers.items()):
            self._board.lose(name, "the job ended", _now())
            del self._workers[name]
            ray.kill(worker)
        for watcher in list(self._watchers):
            watcher.cancel()

    def _cancel_tasks(self) -> list[Any]:
        return [worker.cancel.remote() for worker in self._workers.values()]

    def _spawn(self) -> None:
        # Those of an earlier run may not be gone yet.
        name = f"{_prefix(self._spec.job_id)}{self._epoch}.{self._spawned}"
        self._spawned += 1
        here = ray.get_runtime_context().get_node_id()
        worker = WorkerActor.options(
            name=name,
            namespace=RAY_NAMESPACE,
            num_cpus=0,
            scheduling_strategy=(
                ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
                if self._spec.pin_to_node
                else "SPREAD"
            ),
        ).remote(
            name,
            self._spec,
            math.ceil(self._spec.concurrency / self._spec.workers),
            ray.get_runtime_context().current_actor,
            self._epoch,
        )
        self._workers[name] = worker
        watcher = asyncio.create_task(self._watch(name, worker))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, name: str, worker: Any) -> None:
        # Three ends of a worker: it ran out of tasks; it could not begin or has a bug (the job
        # fails); it died (another takes its place and its tasks).
        try:
            await worker.run.remote()
        except ray.exceptions.RayTaskError as error:
            del self._workers[name]
            ray.kill(worker)
            self._board.lose(name, "its worker failed", _now())
            self.fail(one_line(error.cause if error.cause is not None else error))
        except ray.exceptions.RayError as error:
            del self._workers[name]
            await self._on_death(name, " ".join(str(error).split()))
        else:
            del self._workers[name]
            ray.kill(worker)

    async def _on_death(self, name: str, told: str) -> None:
        why = told[:300]
        held = self._board.lose(name, _cause_of_death(why), _now())
        try:
            await self._write()
        except AgentCloudError as error:
            self.fail(one_line(error))
        if self._board.stop_reason is not None or self._board.is_finished:
            return
        self.lost += 1
        log.warning("a worker died", job=self._spec.job_id, worker=name, held=held, why=why)
        if held:
            self._idle_deaths = 0
        elif NODE_DIED not in told:
            # All workers of a machine die at once with it, and that says nothing of the job.
            self._idle_deaths += 1
        if self._idle_deaths >= MAX_IDLE_DEATHS:
            self.fail(f"workers keep dying: {why}")
        else:
            self._spawn()


def end_former(job_id: str) -> None:
    """End workers that a supervisor before this one left: they go on paying for a while."""
    prefix = _prefix(job_id)
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == RAY_NAMESPACE and entry["name"].startswith(prefix):
            with contextlib.suppress(ValueError, ray.exceptions.RayError):
                ray.kill(ray.get_actor(entry["name"], namespace=RAY_NAMESPACE))


def _prefix(job_id: str) -> str:
    return f"worker:{job_id}:"


def _cause_of_death(why: str) -> str:
    return why.split(". ", maxsplit=1)[0] if why else "unknown"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
