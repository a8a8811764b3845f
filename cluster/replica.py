"""The Ray actor around an engine.

A caller's process attaches once and keeps one streaming generator open, over which everything
that is finished for it comes back, coalesced; it hands in calls by `submit`, many at a time. Each
call is an asyncio task of its own, so a failing one harms no other. When a caller's process dies,
its calls are aborted: it leaves a pending object behind that Ray reports as lost.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import ray
import structlog

from agentcloud.cluster.contracts import RAY_NAMESPACE, LoadReport, Params
from agentcloud.cluster.engine_blocks import Prompt
from agentcloud.cluster.engine_fork import fork_server
from agentcloud.cluster.engine_settings import EngineSettings
from agentcloud.cluster.errors import BackendError
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.outbox import Outbox
from agentcloud.cluster.prefix import Change
from agentcloud.cluster.reaper import end_reaper, start_reaper
from agentcloud.cluster.replica_wire import (
    Answered,
    Failed,
    Order,
    Parcel,
    ReplicaInfo,
    Streamed,
)

if TYPE_CHECKING:
    from agentcloud.cluster.engine import LocalEngine

log = structlog.get_logger()

#: Short methods and one open generator per caller's process share this.
_MAX_CONCURRENCY = 10_000
_DEATH_POLL_S = 0.25


class _Holder:
    """A caller's process: its calls in flight, and what is on its way back."""

    def __init__(self) -> None:
        self.outbox: Outbox[Parcel] = Outbox()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.gone = asyncio.Event()

    def finished(self, key: int, _task: asyncio.Task[None]) -> None:
        """A call's task ended, however it did."""
        self.tasks.pop(key, None)


class Replica:
    """One engine serving many callers. Start one with `start_replica`."""

    def __init__(self, name: str, settings: EngineSettings) -> None:
        configure_logs(actor=name)
        self._name = name
        self._settings = settings
        self._stopping = False
        self._engine: LocalEngine | None = None
        self._starting: asyncio.Task[ReplicaInfo] | None = None
        self._holders: dict[str, _Holder] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        # Before anything else is started: what this process starts must not outlive it.
        self._reaper = start_reaper()

    def __repr__(self) -> str:
        return self._name

    async def ready(self) -> ReplicaInfo:
        """Start the engine the first time; returns once it serves. Tens of seconds.

        Raises:
            Exception: whatever kept the engine from starting; the actor is of no use then.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def attach(
        self, holder: str, life: list[ray.ObjectRef[None]]
    ) -> AsyncIterator[list[Parcel]]:
        """Everything that is finished for a caller's process, until it detaches or dies.

        Args:
            holder: the caller's own id for itself.
            life: its pending `hold` call, lost with its process.
        """
        state = self._holder(holder)
        watcher = asyncio.create_task(self._watch_life(holder, life[0]))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        async for parcels in state.outbox.drain(lambda: len(state.tasks)):
            yield parcels

    async def hold(self, holder: str) -> None:
        """Pends for as long as the holder is attached."""
        await self._holder(holder).gone.wait()

    async def detach(self, holder: str) -> None:
        """Forget a holder and abort its calls."""
        self._drop(holder)

    async def submit(self, holder: str, orders: list[Order]) -> None:
        """Take in calls; their outcomes come over the holder's generator, as they finish."""
        state = self._holder(holder)
        for order in orders:
            task = asyncio.create_task(self._serve(order, state.outbox))
            state.tasks[order.key] = task
            task.add_done_callback(functools.partial(state.finished, order.key))

    async def revoke(self, holder: str, keys: list[int]) -> None:
        """Abort a holder's own calls; nothing comes back for them."""
        if (state := self._holders.get(holder)) is not None:
            for key in keys:
                if (task := state.tasks.get(key)) is not None:
                    task.cancel()

    async def abort(self, call_ids: list[str]) -> None:
        """Abort calls by id, whoever holds them; unknown ids are no error."""
        if self._engine is not None:
            self._engine.abort(call_ids)

    async def count_tokens(self, params: Params) -> int:
        """Tokens of the prompt."""
        return await self._running().count_tokens(params)

    async def load(self) -> LoadReport:
        """The load as the engine last reported it."""
        return self._running().load()

    async def report(self, *, anew: bool = False) -> tuple[LoadReport, Change | None]:
        """The load, and what the cache holds since the last report (None: it is not known).

        Args:
            anew: tell all that the cache holds.
        """
        engine = self._running()
        return engine.load(), engine.cached(anew=anew)

    async def shutdown(self) -> None:
        """End the engine's processes and wait until they are gone; the actor can be killed then."""
        for holder in list(self._holders):
            self._drop(holder)
        self._stopping = True
        if self._engine is not None:
            await self._engine.shutdown()
        # The fork server would end with this process only, some time after whoever stops us.
        await asyncio.to_thread(end_reaper, self._reaper)

    async def _start(self) -> ReplicaInfo:
        started_s = time.monotonic()
        # vllm reads its environment while it is imported.
        os.environ.update(self._settings.env)
        if self._settings.forks:
            # Imports vllm in a process of its own while this one does.
            fork_server()
        from agentcloud.cluster.engine import LocalEngine

        self._engine = await LocalEngine.start(self._settings)
        self._engine.own_process()
        watcher = asyncio.create_task(self._watch_engine(self._engine))
        self._watchers.add(watcher)
        return ReplicaInfo(
            name=self._name,
            model=self._settings.model,
            context_tokens=self._engine.context_tokens,
            kv_tokens=self._engine.kv_tokens,
            pid=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            start_s=time.monotonic() - started_s,
        )

    def _running(self) -> LocalEngine:
        if self._engine is None:
            raise BackendError(f"{self._name} is still starting")
        return self._engine

    def _holder(self, holder: str) -> _Holder:
        return self._holders.setdefault(holder, _Holder())

    async def _serve(self, order: Order, outbox: Outbox[Parcel]) -> None:
        key, call = order.key, order.call
        try:
            engine = self._running()
            prompt = Prompt(call.prefix, call.prefix_shares)
            if order.stream:
                async for event, timings in engine.stream(call.params, call.call_id, prompt):
                    outbox.put(Streamed(key, event, timings))
            else:
                reply = await engine.create(call.params, call.call_id, prompt)
                outbox.put(Answered(key, reply.message, reply.timings))
        except asyncio.CancelledError:
            outbox.put(Failed(key, BackendError("aborted", kind="aborted")))
            raise
        except BackendError as error:
            error.endpoint = self._name
            outbox.put(Failed(key, error))
        except Exception as error:
            log.exception("call failed by a bug", endpoint=self._name, call_id=call.call_id)
            outbox.put(Failed(key, BackendError(repr(error), endpoint=self._name)))

    async def _watch_life(self, holder: str, life: ray.ObjectRef[None]) -> None:
        try:
            await life
        except ray.exceptions.RayError:
            log.info("caller died, its calls are aborted", endpoint=self._name, holder=holder)
        self._drop(holder)

    def _drop(self, holder: str) -> None:
        if (state := self._holders.pop(holder, None)) is None:
            return
        for task in state.tasks.values():
            task.cancel()
        state.outbox.close()
        state.gone.set()

    async def _watch_engine(self, engine: LocalEngine) -> None:
        """An engine never comes back: end with it, so that whoever waits learns at once."""
        while not engine.is_dead:  # noqa: ASYNC110  # vllm offers a flag, nothing to await
            await asyncio.sleep(_DEATH_POLL_S)
        if not self._stopping:
            log.error("engine died, replica ends", endpoint=self._name)
            os._exit(1)


def start_replica(
    name: str, settings: EngineSettings, *, detached: bool = True, **options: Any
) -> ray.actor.ActorHandle[Replica]:
    """Create a replica's actor; await its `ready()` before use.

    Args:
        name: actor and endpoint name, `replica:<model>:<i>`.
        settings: how its engine is started.
        detached: outlive the process that starts it.
        options: further Ray actor options (`num_cpus`, `scheduling_strategy`, ...).
    """
    return (
        ray.remote(Replica)
        .options(
            name=name,
            namespace=RAY_NAMESPACE,
            lifetime="detached" if detached else None,
            max_concurrency=_MAX_CONCURRENCY,
            max_restarts=0,
            **{"num_cpus": 0, **options},
        )
        .remote(name, settings)
    )
