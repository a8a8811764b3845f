"""Doing: a call that the response cache may answer: asked there, sent where it must be.

Streams do not use it: what they are for is their first token.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from agentcloud.cluster.cache_answer import cost_of, is_whole, packed_answer, unpacked_answer
from agentcloud.cluster.cache_client import CacheClient
from agentcloud.cluster.cache_key import key_of, served_by
from agentcloud.cluster.cache_wire import Answered, Ask, Fault, Landed, Send
from agentcloud.cluster.clock import Clock
from agentcloud.cluster.contracts import Params, Routing
from agentcloud.cluster.errors import CallTimeout, InvalidRequest
from agentcloud.cluster.message import RoutedMessage, with_receipt
from agentcloud.cluster.tiers import FleetTiers

log = structlog.get_logger()


class CachedCalls:
    """The calls of one process that the cache may answer.

    Guarantees: an answer from the cache takes no lease and costs nothing; of equal calls over the
    whole cluster one is sent at a time. One that waits for another's answer waits as long as that
    takes, by the other's priority and endpoint, but never beyond its own deadline. A request that
    is refused as invalid is so for all that wait; after any other failure the next of them sends
    its own, and after two all do.
    """

    def __init__(
        self,
        client: CacheClient,
        tiers: FleetTiers,
        clock: Clock,
        send: Callable[[Params, Routing], Awaitable[RoutedMessage]],
    ) -> None:
        """Nothing is asked before the first call.

        Args:
            client: the way to the cache.
            tiers: what serves a name.
            clock: the time seam.
            send: serves a call by an endpoint.
        """
        self._client = client
        self._tiers = tiers
        self._clock = clock
        self._send = send
        self._served: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"CachedCalls({self._client!r})"

    async def create(
        self, params: Params, routing: Routing, model: str, call_id: str
    ) -> RoutedMessage:
        """Serve one call.

        Args:
            params: of the Messages API.
            routing: what its caller added.
            model: the tier or model asked for, aliases resolved.
            call_id: its name, where the cache answers it.

        Raises:
            CallTimeout: the deadline passed while an equal call was under way.
            AgentCloudError: as `Inference.create`.
        """
        began_s = self._clock.now()
        config = self._tiers.config
        if (served := self._served.get(model)) is None:
            served = self._served[model] = served_by(self._tiers.models_of(model), config)
        key = key_of(params, served, routing)
        deadline_s = routing.deadline_s
        patient = deadline_s is not None and deadline_s >= config.batch.min_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                verdict = await self._client.ask(key, model, patient=patient)
        except TimeoutError:
            raise _late(deadline_s) from None
        if isinstance(verdict, Answered):
            total_s = self._clock.now() - began_s
            message = _answer(verdict, call_id, total_s)
            if message is not None and not (
                routing.fallback is False and message.agentcloud.fallback_from is not None
            ):
                return message
        elif isinstance(verdict, Fault):
            raise copy.copy(verdict.error)  # Others raise it too, with tracebacks of their own.
        if deadline_s is not None:
            left_s = deadline_s - (self._clock.now() - began_s)
            if left_s <= 0:
                if isinstance(verdict, Send):
                    self._client.fell(verdict.ask, given_up=True)
                raise _late(deadline_s)
            routing = replace(routing, deadline_s=left_s)
        if isinstance(verdict, Send):
            message = await self._sent(verdict.ask, params, routing)
        else:
            message = await self._send(params, routing)
        receipt = message.agentcloud
        timings = replace(receipt.timings, total_s=self._clock.now() - began_s)
        return with_receipt(message, replace(receipt, timings=timings))

    async def close(self) -> None:
        """Leave the cache."""
        await self._client.close()

    async def _sent(self, ask: Ask, params: Params, routing: Routing) -> RoutedMessage:
        """Send the call that others may wait for, and tell how it ended."""
        try:
            message = await self._send(params, routing)
        except InvalidRequest as error:
            self._client.fell(ask, copy.copy(error))
            raise
        except Exception:
            self._client.fell(ask)
            raise
        except BaseException:
            self._client.fell(ask, given_up=True)
            raise
        self._client.landed(
            Landed(ask, packed_answer(message), cost_of(message.agentcloud), is_whole(message))
        )
        return message


def _answer(verdict: Answered, call_id: str, total_s: float) -> RoutedMessage | None:
    """The answer; None: what was kept cannot be read, and the call is to be sent."""
    try:
        kept = unpacked_answer(verdict.entry.body)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("a kept answer cannot be read, the call is sent", why=str(error))
        return None
    return kept.again(call_id, verdict.age_s, total_s)


def _late(deadline_s: float | None) -> CallTimeout:
    return CallTimeout(
        f"the deadline of {deadline_s or 0:g} s passed while an equal call was under way; give "
        f"more time, or Routing(cache=False)",
        timeout_s=deadline_s,
    )
