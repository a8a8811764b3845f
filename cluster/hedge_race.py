"""Doing: one send, and for a slow idempotent call a second one beside it; the first answer wins.

The loser is cancelled (its replica aborts it, its connection is closed) and settled as what it is:
a local one costs the GPU time it took, a hosted one stays charged at its reservation, unknown.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from agentcloud.cluster.attempts import Attempts, Send
from agentcloud.cluster.clock import Clock
from agentcloud.cluster.contracts import Answer, Lease, Params, Settlement
from agentcloud.cluster.errors import AgentCloudError, BackendError
from agentcloud.cluster.ports import SchedulerPort

if TYPE_CHECKING:
    from agentcloud.cluster.inference import Inference, Opened

log = structlog.get_logger()


class Race:
    """The sends of one attempt.

    Guarantee: every send but `opened` is settled when `answer` ends, however it ends.

    Attributes:
        opened: the send that answered, or whose error `answer` raised.
    """

    def __init__(
        self,
        inference: Inference,
        scheduler: SchedulerPort,
        clock: Clock,
        run: Attempts,
        params: Params,
        opened: Opened,
    ) -> None:
        self.opened = opened
        self._inference = inference
        self._scheduler = scheduler
        self._clock = clock
        self._run = run
        self._params = params
        self._sends: dict[asyncio.Task[Answer], Opened] = {}
        self._answered = False

    async def answer(self) -> Answer:
        """The first good answer.

        Raises:
            BackendError: the last send under way failed.
        """
        after_s = self.opened.send.lease.hedge_after_s
        if after_s is None:
            return await self.opened.endpoint.create(self.opened.send.call)
        asking: asyncio.Task[Opened | None] | None = None
        self._begin(self.opened)
        try:
            done, _ = await asyncio.wait(self._sends, timeout=after_s)
            if not done:
                asking = asyncio.create_task(self._second())
            while True:
                waited = [*self._sends, *([asking] if asking else [])]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if asking is not None and asking.done():
                    second, asking = asking.result(), None
                    if second is not None:
                        self._begin(second)
                if (answer := self._look()) is not None:
                    return answer
        finally:
            await self._end(asking)

    def _begin(self, opened: Opened) -> None:
        self._sends[asyncio.create_task(opened.endpoint.create(opened.send.call))] = opened

    def _look(self) -> Answer | None:
        """The answer, if one is there; a failure beside a send under way is settled."""
        for task in [task for task in self._sends if task.done()]:
            opened = self._sends.pop(task)
            error = task.exception()
            if error is None:
                self.opened = opened
                self._answered = True
                return task.result()
            if not self._sends or not isinstance(error, BackendError):
                self.opened = opened
                raise error
            settlement = self._run.failed_beside(opened.send, error, self._clock.now())
            self._scheduler.settle(settlement)
            (self.opened,) = self._sends.values()
        return None

    async def _second(self) -> Opened | None:
        """A second send elsewhere, if the scheduler, the budgets and the task allow one."""
        asked_s = self._clock.now()
        first = self.opened.send.lease.endpoint.name
        lease: Lease | None = None
        try:
            request = self._run.hedge_request(first, asked_s)
            if request is None:
                return None
            lease = await self._scheduler.acquire(request)
            second = self._inference.ready(self._run, lease, self._params, asked_s)
        except AgentCloudError as error:
            # The first send goes on, within its own time.
            log.debug("not sent a second time", slow=first, why=str(error))
            if lease is not None:
                self._scheduler.settle(self._run.unsent(lease))
            return None
        if not self._run.begin_hedge():
            self._inference.release(self._run, second.send)
            return None
        log.info("slow, sent again", call=lease.call_id, slow=first, to=lease.endpoint.name)
        return second

    async def _end(self, asking: asyncio.Task[Opened | None] | None) -> None:
        """Cancel and settle what is still under way, but for the send that the caller settles."""
        tasks: list[asyncio.Task[Answer] | asyncio.Task[Opened | None]] = [*self._sends]
        if asking is not None:
            tasks.append(asking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if asking is not None and not asking.cancelled() and (granted := asking.result()):
            self._inference.release(self._run, granted.send)
        for task, opened in self._sends.items():
            if opened is not self.opened:
                self._scheduler.settle(self._ended(task, opened.send))

    def _ended(self, task: asyncio.Task[Answer], send: Send) -> Settlement:
        """How a send ended that is not the call's: most often it was cancelled just now."""
        now_s = self._clock.now()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, BackendError):
            return self._run.failed_beside(send, error, now_s)
        if not self._answered:
            return self._run.abandoned(send, now_s)
        answer = None if task.cancelled() or error else task.result()
        return self._run.beaten(send, answer, now_s)
