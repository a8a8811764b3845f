"""The way to the batcher's actor, from any process."""

from __future__ import annotations

from typing import Any

import ray

from agentcloud.cluster.batch_client import BatcherLost
from agentcloud.cluster.batch_wire import Tell, Told
from agentcloud.cluster.contracts import BATCHER_NAME, RAY_NAMESPACE


class BatcherPort:
    """The actor as `BatchPort`; looked up by its name whenever it was lost."""

    def __init__(self, name: str = BATCHER_NAME) -> None:
        self._name = name
        self._actor: Any = None

    async def exchange(self, tell: Tell) -> Told:
        """As `BatchPort.exchange`.

        Raises:
            BatcherLost: it is not there.
        """
        told: Told = await self._call("exchange", tell)
        return told

    async def leave(self, holder: str) -> None:
        """As `BatchPort.leave`.

        Raises:
            BatcherLost: it is not there.
        """
        await self._call("leave", holder)

    async def _call(self, method: str, argument: Any) -> Any:
        try:
            if self._actor is None:
                self._actor = ray.get_actor(self._name, namespace=RAY_NAMESPACE)
            return await getattr(self._actor, method).remote(argument)
        except (ValueError, ray.exceptions.RayError) as error:
            self._actor = None
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise BatcherLost(why) from error
