"""A process's way to the ledger: what it puts while a call is under way goes with the next."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import ray

from agentcloud.cluster.contracts import RAY_NAMESPACE
from agentcloud.cluster.errors import ConfigError, RunReplaced
from agentcloud.cluster.patience import asked
from agentcloud.tasks.ledger_wire import (
    LEDGER_NAME,
    ContentRow,
    EndRow,
    Put,
    Recalled,
    StartRow,
    StepRow,
)

#: Hashes of contents that are known to be stored: parts that many tasks share travel once.
_REMEMBERED: Final = 50_000

T = TypeVar("T")


class LedgerPort(Protocol):
    """What a recorder asks of the ledger."""

    async def put(
        self,
        *,
        steps: Sequence[StepRow] = (),
        contents: Sequence[ContentRow] = (),
    ) -> None:
        """Write; it is on the disk when this returns."""
        ...

    async def recall(self, task_id: str) -> Recalled:
        """Everything known of a task that was begun before."""
        ...


class LedgerClient:
    """Puts and recalls for one run of a job.

    Args:
        job_id: the job.
        epoch: of its run.
    """

    def __init__(self, job_id: str, epoch: int) -> None:
        self._job_id = job_id
        self._epoch = epoch
        self._waiting: list[tuple[Put, asyncio.Future[None]]] = []
        self._pump: asyncio.Task[None] | None = None
        self._stored: set[str] = set()

    def __repr__(self) -> str:
        return f"<LedgerClient {self._job_id}/{self._epoch}, {len(self._waiting)} waiting>"

    async def put(
        self,
        *,
        steps: Sequence[StepRow] = (),
        contents: Sequence[ContentRow] = (),
        starts: Sequence[StartRow] = (),
        ends: Sequence[EndRow] = (),
    ) -> None:
        """Write; it is on the disk when this returns, and is written too if this is cancelled.

        Raises:
            RunReplaced: a later run of the job has begun.
            ConfigError: there is no ledger any more.
        """
        fresh = [row for row in contents if row.hash not in self._stored]
        put = Put(self._job_id, self._epoch, steps, fresh, starts, ends)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((put, written))
        if self._pump is None:
            self._pump = asyncio.create_task(self._send())
        await asyncio.shield(written)

    async def recall(self, task_id: str) -> Recalled:
        """Everything known of a task that was begun before."""
        recalled: Recalled = await ask_ledger(
            lambda ledger: ledger.recall.remote(self._job_id, task_id)
        )
        return recalled

    async def _send(self) -> None:
        # One call at a time: each takes along all that came meanwhile.
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                put = _together([each for each, _ in waiting], self._job_id, self._epoch)
                error: Exception | None = None
                try:
                    if not await ask_ledger(partial(_write, put=put)):
                        error = RunReplaced(
                            f"a later run of job {self._job_id} has begun; this one ends"
                        )
                    self._remember(put.contents)
                except Exception as failed:
                    error = failed
                for _, written in waiting:
                    _resolve(written, error)
        finally:
            self._pump = None

    def _remember(self, contents: Sequence[ContentRow]) -> None:
        if len(self._stored) > _REMEMBERED:
            self._stored.clear()
        self._stored.update(row.hash for row in contents)


async def ask_ledger(ask: Callable[[Any], Awaitable[T]]) -> T:
    """Ask the cluster's ledger, again where it died meanwhile.

    Raises:
        ConfigError: there is none.
    """
    try:
        return await asked(lambda: ask(find_ledger()), within_s=math.inf)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def find_ledger() -> Any:
    """The cluster's ledger.

    Raises:
        ConfigError: there is none.
    """
    try:
        return ray.get_actor(LEDGER_NAME, namespace=RAY_NAMESPACE)
    except ValueError:
        raise ConfigError(
            "no ledger runs on this cluster; `agentcloud up` starts one with the fleet"
        ) from None


def _write(ledger: Any, put: Put) -> Awaitable[bool]:
    written: Awaitable[bool] = ledger.write.remote(put)
    return written


def _together(puts: Sequence[Put], job_id: str, epoch: int) -> Put:
    return Put(
        job_id,
        epoch,
        [row for put in puts for row in put.steps],
        list({row.hash: row for put in puts for row in put.contents}.values()),
        [row for put in puts for row in put.starts],
        [row for put in puts for row in put.ends],
    )


def _resolve(written: asyncio.Future[None], error: Exception | None) -> None:
    if written.done():
        return
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)
        written.exception()  # whoever was cancelled does not ask for it
