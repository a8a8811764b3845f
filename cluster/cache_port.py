"""The way to the response cache's actor, from any process."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from agentcloud.cluster.cache_wire import CacheLost, Tell, Told, packed, unpacked
from agentcloud.cluster.contracts import CACHE_NAME, RAY_NAMESPACE


def find_cache(name: str = CACHE_NAME) -> Any | None:
    """The running cache; None: there is none."""
    try:
        return ray.get_actor(name, namespace=RAY_NAMESPACE)
    except ValueError:
        return None


class CacheActorPort:
    """The actor as `CachePort`; looked up by its name whenever it was lost."""

    def __init__(self, name: str = CACHE_NAME) -> None:
        self._name = name
        self._actor: Any = None

    def __repr__(self) -> str:
        return f"CacheActorPort({self._name})"

    async def exchange(self, tell: Tell) -> Told:
        """As `CachePort.exchange`.

        Raises:
            CacheLost: it is not there.
        """
        return unpacked(await self._call("exchange", packed(tell)), Told)

    async def wait(self, holder: str) -> Told:
        """As `CachePort.wait`.

        Raises:
            CacheLost: it is not there.
        """
        return unpacked(await self._call("wait", holder), Told)

    async def leave(self, holder: str) -> None:
        """As `CachePort.leave`.

        Raises:
            CacheLost: it is not there.
        """
        await self._call("leave", holder)

    async def _call(self, method: str, argument: Any) -> Any:
        try:
            if self._actor is None:
                self._actor = await asyncio.to_thread(
                    ray.get_actor, self._name, namespace=RAY_NAMESPACE
                )
            return await getattr(self._actor, method).remote(argument)
        except (ValueError, ray.exceptions.RayError) as error:
            self._actor = None
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise CacheLost(why, is_gone=isinstance(error, ValueError)) from error
