"""The response cache's Ray actor: one a cluster, detached, restarted by Ray."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

import ray
import structlog

from agentcloud.cluster.cache_metrics import CacheMetrics
from agentcloud.cluster.cache_port import find_cache
from agentcloud.cluster.cache_redis import open_redis_answers
from agentcloud.cluster.cache_service import HOLDER_TIMEOUT_S, CacheService
from agentcloud.cluster.cache_store import Answers, open_sql_answers
from agentcloud.cluster.cache_wire import Tell, packed, unpacked
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.config_rules import Caching
from agentcloud.cluster.contracts import CACHE_NAME
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.head_actor import start_on_head
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.metrics import EXPORT_EVERY_S

_CONTROL_TIMEOUT_S: Final = 60.0

log = structlog.get_logger()


class CacheShell:
    """The actor's body: everything runs on its one event loop."""

    def __init__(
        self, caching: Caching, store: str | None, holder_timeout_s: float = HOLDER_TIMEOUT_S
    ) -> None:
        configure_logs(actor=CACHE_NAME)
        self._settings = caching, store
        self._broken: ConfigError | None = None
        answers: Answers | None = None
        try:
            answers = _opened(caching, store)
        except ConfigError as error:
            # Said by `ping`: an actor that fails to start would only say that it failed.
            log.error("answers are not kept, only shared while under way", why=str(error))
            self._broken = error
        self._service = CacheService(
            answers, ttl_s=caching.ttl_s, holder_timeout_s=holder_timeout_s
        )
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return CACHE_NAME

    async def exchange(self, tell: bytes) -> bytes:
        """As `CachePort.exchange`, packed."""
        self._start()
        return packed(await self._service.exchange(unpacked(tell, Tell)))

    async def wait(self, holder: str) -> bytes:
        """As `CachePort.wait`, packed."""
        self._start()
        return packed(await self._service.wait(holder))

    async def leave(self, holder: str) -> None:
        """As `CachePort.leave`."""
        await self._service.leave(holder)

    async def ping(self) -> tuple[Caching, str | None]:
        """What it was started with.

        Raises:
            ConfigError: answers cannot be kept so.
        """
        if self._broken is not None:
            raise self._broken
        self._start()
        return self._settings

    async def snapshot(self) -> dict[str, Any]:
        """As `CacheService.snapshot`."""
        return await self._service.snapshot()

    async def stop(self) -> None:
        """Write what is there, and end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self._service.close)

    def _start(self) -> None:
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._service.keep_time()),
                loop.create_task(self._export()),
            ]

    async def _export(self) -> None:
        metrics = CacheMetrics()
        while True:
            await asyncio.sleep(EXPORT_EVERY_S)
            try:
                metrics.export(self._service.counts())
            except Exception:
                log.exception("metrics were not exported")


CacheActor = ray.remote(CacheShell)


def bring_cache(config: FleetConfig) -> None:
    """Have the cache run as fleet.yaml says, or not at all.

    Raises:
        ConfigError: answers cannot be kept where it says; then it does not run.
    """
    actor = find_cache()
    if config.cache is None:
        stop_cache()
        return
    if actor is not None:
        with contextlib.suppress(ray.exceptions.RayError):
            running = ray.get(actor.ping.remote(), timeout=_CONTROL_TIMEOUT_S)
            if running == (config.cache, config.store):
                return
        stop_cache()
    actor = start_cache(config.cache, config.store)
    try:
        ray.get(actor.ping.remote(), timeout=_CONTROL_TIMEOUT_S)
    except ray.exceptions.RayTaskError as error:
        stop_cache()
        if isinstance(error.cause, ConfigError):
            raise error.cause from None
        raise


def start_cache(
    caching: Caching,
    store: str | None,
    *,
    name: str = CACHE_NAME,
    holder_timeout_s: float = HOLDER_TIMEOUT_S,
) -> Any:
    """Start the cluster's cache, or find the running one."""
    return start_on_head(CacheActor, name, caching, store, holder_timeout_s)


def stop_cache(name: str = CACHE_NAME) -> None:
    """End the cache, if there is one, and wait until its name is free."""
    actor = find_cache(name)
    if actor is None:
        return
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(actor.stop.remote(), timeout=_CONTROL_TIMEOUT_S)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(actor)
    deadline_s = time.monotonic() + _CONTROL_TIMEOUT_S
    while find_cache(name) is not None and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _opened(caching: Caching, store: str | None) -> Answers:
    if (url := caching.redis_url) is not None:
        return open_redis_answers(url, ttl_s=caching.ttl_s)
    return open_sql_answers(caching, store)
