"""Asking an actor that Ray may be starting anew: again, for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import ray
import structlog

#: An actor that Ray restarts is there again within this, seconds.
PATIENCE_S: Final = 60.0
_AGAIN_S: Final = 0.2

T = TypeVar("T")

log = structlog.get_logger()


async def asked(ask: Callable[[], Awaitable[T]], *, within_s: float = PATIENCE_S) -> T:
    """Ask until there is an answer. Only for what may be asked twice.

    Args:
        ask: one try.
        within_s: the longest to go on, seconds.

    Raises:
        RayActorError: the actor was not there all the while.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    while True:
        try:
            return await ask()
        except ray.exceptions.RayTaskError:
            raise  # an answer, of a kind
        except ray.exceptions.RayActorError as error:
            if loop.time() >= end_s:
                raise
            log.info("an actor does not answer, asking again", why=type(error).__name__)
            await asyncio.sleep(_AGAIN_S)
