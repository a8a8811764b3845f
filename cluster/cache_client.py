"""A process's side of the response cache: what it asks and tells travels in batches."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import uuid
from collections.abc import Coroutine
from typing import Any, Final

import structlog

from agentcloud.cluster.cache_wire import (
    Alone,
    Ask,
    CacheLost,
    CachePort,
    Fell,
    Landed,
    Send,
    Tell,
    Told,
    Verdict,
)
from agentcloud.cluster.errors import InvalidRequest

#: A cache that does not come back within this is done without, and for as long.
PATIENCE_S: Final = 10.0
_AGAIN_S: Final = 0.2
_MOST: Final = 512

log = structlog.get_logger()


class CacheClient:
    """Asks the cache and tells it answers; one a process and event loop.

    Guarantee: `ask` ends: where the cache is gone, its callers are told to send their calls alone.
    One that was started again is told all that is under way: telling twice is telling once.
    """

    def __init__(self, port: CachePort, *, patience_s: float = PATIENCE_S) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._port = port
        self._patience_s = patience_s
        self._numbers = itertools.count(1)
        self._open: dict[str, tuple[Ask, asyncio.Future[Verdict]]] = {}
        self._sending: dict[str, Ask] = {}
        self._to_ask: dict[str, Ask] = {}
        self._again: dict[str, Ask] = {}
        self._to_drop: dict[str, None] = {}
        self._landed: list[Landed] = []
        self._fell: list[Fell] = []
        self._tell_sending = False
        self._epoch: str | None = None
        self._without_until_s = float("-inf")
        self._wake = asyncio.Event()
        self._busy = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<CacheClient {self.holder} asks={len(self._open)} sending={len(self._sending)}>"

    async def ask(self, key: str, model: str, *, patient: bool = False) -> Verdict:
        """What the cache says to a call; after `Send`, `landed` or `fell` is to be told.

        Args:
            key: of its answer.
            model: the tier or model asked for.
            patient: it can wait for hours.
        """
        ask = Ask(f"{self.holder}:{next(self._numbers)}", key, model, patient)
        loop = asyncio.get_running_loop()
        if loop.time() < self._without_until_s:
            return Alone(ask)
        if not self._tasks:
            self._tasks = [loop.create_task(work) for work in self._work()]
        future: asyncio.Future[Verdict] = loop.create_future()
        self._open[ask.ask_id] = ask, future
        self._to_ask[ask.ask_id] = ask
        self._wake.set()
        self._busy.set()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and isinstance(future.result(), Send):
                self.fell(ask, given_up=True)
            elif self._to_ask.pop(ask.ask_id, None) is None:
                self._again.pop(ask.ask_id, None)
                self._to_drop[ask.ask_id] = None
                self._wake.set()
            raise
        finally:
            self._open.pop(ask.ask_id, None)

    def landed(self, landed: Landed) -> None:
        """Tell the answer of a call that was to be sent; never waits."""
        self._sending.pop(landed.ask.ask_id, None)
        self._landed.append(landed)
        self._wake.set()

    def fell(
        self, ask: Ask, error: InvalidRequest | None = None, *, given_up: bool = False
    ) -> None:
        """Tell that a call that was to be sent has no answer; never waits."""
        self._sending.pop(ask.ask_id, None)
        self._fell.append(Fell(ask, error, given_up))
        self._wake.set()

    async def close(self) -> None:
        """Tell what has landed, and leave: others take over what is still sent here."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for _, future in self._open.values():
            future.cancel()
        try:
            if self._landed:
                await self._port.exchange(Tell(self.holder, landed=self._landed))
            await self._port.leave(self.holder)
        except CacheLost as why:
            log.info("the cache was gone at close", why=str(why))

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        return [self._tell(), self._listen()]

    # -- telling

    async def _tell(self) -> None:
        lost_s: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            # All that is asked in one turn of the loop travels together.
            await asyncio.sleep(0)
            tell = self._next()
            try:
                told = await self._port.exchange(tell)
            except Exception as error:
                self._put_back(tell)
                lost_s = loop.time() if lost_s is None else lost_s
                is_gone = isinstance(error, CacheLost) and error.is_gone
                if is_gone or loop.time() - lost_s >= self._patience_s:
                    self._do_without(error)
                    lost_s = None
                else:
                    await asyncio.sleep(_AGAIN_S)
            else:
                lost_s = None
                self._take_in(told)

    def _next(self) -> Tell:
        """What is told next; wakes itself for the rest."""
        asks = dict(itertools.islice(self._to_ask.items(), _MOST))
        for ask_id in asks:
            del self._to_ask[ask_id]
        tell = Tell(
            self.holder,
            list(self._sending.values()) if self._tell_sending else [],
            self._landed[:_MOST],
            self._fell,
            list(self._to_drop),
            list(asks.values()),
            list(self._again.values()),
        )
        del self._landed[:_MOST]
        self._fell, self._to_drop, self._again, self._tell_sending = [], {}, {}, False
        if not (self._to_ask or self._landed):
            self._wake.clear()
        return tell

    def _put_back(self, tell: Tell) -> None:
        self._tell_sending = self._tell_sending or bool(tell.sending)
        self._landed = tell.landed + self._landed
        self._fell = tell.fell + self._fell
        self._to_drop = dict.fromkeys(tell.drops) | self._to_drop
        self._to_ask |= {ask.ask_id: ask for ask in tell.asks if ask.ask_id in self._open}
        self._again |= {ask.ask_id: ask for ask in tell.again if ask.ask_id in self._open}
        self._wake.set()

    def _do_without(self, why: Exception) -> None:
        """Nobody waits any longer; what would be told is of no use to another instance."""
        log.warning("no response cache, calls are sent without it", why=str(why))
        self._without_until_s = asyncio.get_running_loop().time() + self._patience_s
        for ask, future in self._open.values():
            if not future.done():
                future.set_result(Alone(ask))
        self._to_ask, self._again, self._to_drop = {}, {}, {}
        self._landed, self._fell, self._sending = [], [], {}
        self._wake.clear()

    # -- being told

    async def _listen(self) -> None:
        """Hear of calls that wait; also the sign of life of those that are sent."""
        while True:
            if not (self._open or self._sending):
                self._busy.clear()
                await self._busy.wait()
            try:
                self._take_in(await self._port.wait(self.holder))
            except Exception as error:
                if not isinstance(error, CacheLost):
                    log.exception("listening to the cache failed")
                self._tell_again()
                await asyncio.sleep(_AGAIN_S)

    def _take_in(self, told: Told) -> None:
        if self._epoch not in (None, told.epoch):
            self._tell_again()
        self._epoch = told.epoch
        for verdict in told.verdicts:
            ask = verdict.ask
            self._to_ask.pop(ask.ask_id, None)
            self._again.pop(ask.ask_id, None)
            _, future = self._open.get(ask.ask_id, (None, None))
            is_awaited = future is not None and not future.done()
            if isinstance(verdict, Send):
                if is_awaited:
                    self._sending[ask.ask_id] = ask
                elif ask.ask_id not in self._sending:
                    self.fell(ask, given_up=True)
            if future is not None and is_awaited:
                future.set_result(verdict)

    def _tell_again(self) -> None:
        for ask, future in self._open.values():
            if not future.done() and ask.ask_id not in self._to_ask:
                self._again[ask.ask_id] = ask
        self._tell_sending = bool(self._sending)
        if self._again or self._tell_sending:
            self._wake.set()
