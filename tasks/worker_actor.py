"""The Ray actor `worker:<job>:<i>`.

Apart from its body, which takes two seconds to import: supervisors know this class only.
"""

from __future__ import annotations

from typing import Any

import ray

from agentcloud.tasks.spec import JobSpec


class WorkerShell:
    """The actor's class; arguments and methods are those of `Worker`."""

    def __init__(self, name: str, spec: JobSpec, room: int, supervisor: Any, epoch: int) -> None:
        # Here, in the worker's process alone.
        from agentcloud.tasks.worker import Worker

        self._worker = Worker(name, spec, room, supervisor, epoch)

    def __repr__(self) -> str:
        return repr(self._worker)

    async def run(self) -> None:
        """As `Worker.run`."""
        await self._worker.run()

    async def cancel(self) -> None:
        """As `Worker.cancel`."""
        await self._worker.cancel()


WorkerActor = ray.remote(WorkerShell)
