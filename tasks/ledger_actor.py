"""The Ray actor `ledger`: the one process that writes the ledger.

What several workers put while a transaction is written goes into the next one together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
import structlog
from sqlalchemy.exc import OperationalError

from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.fault_points import reached
from agentcloud.cluster.group_writer import RETRY_S, GroupWriter
from agentcloud.cluster.head_actor import start_on_head
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.patience import PATIENCE_S
from agentcloud.cluster.sql import cause
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_wire import LEDGER_NAME, EndRow, LedgerJob, Put, Recalled, StartRow

T = TypeVar("T")

log = structlog.get_logger()


class LedgerService:
    """The actor's class; Ray restarts it, and whoever was told nothing puts again.

    Args:
        url: fleet.yaml's `store:`.
    """

    def __init__(self, url: str | None) -> None:
        configure_logs(actor=LEDGER_NAME)
        self._broken: ConfigError | None = None
        try:
            self._ledger = Ledger(url)
        except ConfigError as error:
            # Said by `ping`: an actor that fails to start would only say that it failed.
            self._broken = error
            return
        self._writer = GroupWriter[Put](self._write_all, name="ledger-writer")

    def __repr__(self) -> str:
        return LEDGER_NAME

    async def ping(self) -> None:
        """Answer at once.

        Raises:
            ConfigError: its database cannot be used.
        """
        if self._broken is not None:
            raise self._broken

    async def begin(self, job_id: str, spec: str, origin: dict[str, Any]) -> int:
        """As `Ledger.begin`."""
        return await _patiently(self._ledger.begin, job_id, spec, origin)

    async def mark(self, job_id: str, epoch: int, state: str) -> None:
        """As `Ledger.mark`."""
        await _patiently(self._ledger.mark, job_id, epoch, state)

    async def end(
        self, job_id: str, epoch: int, state: str, record: dict[str, Any], spent_usd: str
    ) -> None:
        """As `Ledger.end`."""
        await _patiently(self._ledger.end, job_id, epoch, state, record, spent_usd)

    async def write(self, put: Put) -> bool:
        """Write; it is on the disk when this returns. False: a later run of the job has begun."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done() -> None:
            written.get_loop().call_soon_threadsafe(_set, written)

        self._writer.put(put, done)
        await written
        return not put.is_stale

    def _write_all(self, puts: Sequence[Put], again: bool) -> None:
        reached("before-step")
        self._ledger.write(puts, again)
        reached("after-step")

    async def recall(self, job_id: str, task_id: str) -> Recalled:
        """As `Ledger.recall`; the scheduler is told what was never settled."""
        recalled = await _patiently(self._ledger.recall, job_id, task_id)
        if recalled.owed:
            try:
                scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
                scheduler.reconcile.remote(recalled.owed)
            except ValueError:
                log.warning("no scheduler to tell the cost of calls", calls=len(recalled.owed))
        return recalled

    async def ended(self, job_id: str, after: str) -> list[EndRow]:
        """As `Ledger.ended`."""
        return await _patiently(self._ledger.ended, job_id, after)

    async def begun(self, job_id: str, after: str) -> list[StartRow]:
        """As `Ledger.begun`."""
        return await _patiently(self._ledger.begun, job_id, after)

    async def forget_failed(self, job_id: str) -> int:
        """As `Ledger.forget_failed`."""
        return await _patiently(self._ledger.forget_failed, job_id)

    async def spent_before(self, job_id: str, fleet: str) -> str:
        """As `Ledger.spent_before`, as text."""
        return str(await _patiently(self._ledger.spent_before, job_id, fleet))

    async def resent(self, job_id: str) -> int:
        """As `Ledger.resent`."""
        return await _patiently(self._ledger.resent, job_id)

    async def job(self, job_id: str) -> LedgerJob | None:
        """As `Ledger.job`."""
        return await _patiently(self._ledger.job, job_id)

    async def read(self, ask: Callable[[Ledger], T]) -> T:
        """Anything that a command asks; `ask` is a function of ours."""
        return await _patiently(ask, self._ledger)

    async def jobs(self) -> list[LedgerJob]:
        """As `Ledger.jobs`."""
        return await _patiently(self._ledger.jobs)


async def _patiently(ask: Callable[..., T], *arguments: Any) -> T:
    """Ask the database, again where it is away (restarted, say): no task fails for that."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await asyncio.to_thread(ask, *arguments)
        except OperationalError as error:
            if time.monotonic() > end_s:
                raise
            log.warning("the database does not answer, asking again", why=cause(error))
            await asyncio.sleep(RETRY_S)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


LedgerActor = ray.remote(LedgerService)


def start_ledger(store: str | None) -> Any:
    """Start the cluster's ledger, or find the running one.

    Args:
        store: fleet.yaml's `store:`.

    Raises:
        ConfigError: its database cannot be used.
    """
    actor = start_on_head(LedgerActor, LEDGER_NAME, store)
    try:
        ray.get(actor.ping.remote(), timeout=60)
    except ray.exceptions.RayTaskError as error:
        ray.kill(actor)
        raise error.cause from None
    return actor
