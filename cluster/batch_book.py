"""Pure: which calls the batcher has, whose they are, in which batch, and what is delivered."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agentcloud.cluster.batch_store import BatchRow, CallRow
from agentcloud.cluster.batch_wire import Ask, Delivery
from agentcloud.cluster.errors import BackendError


@dataclass(slots=True)
class Call:
    """One call.

    Attributes:
        holder: the process that waits for it; None: its process is gone, another may take over.
        batch_key: None until it is being sent.
        ended: its answer is on disk.
        taken_over: an earlier process had it sent.
    """

    custom_id: str
    ask_id: str
    holder: str | None
    account: str
    endpoint: str
    digest: str
    batch_key: str | None = None
    ended: bool = False
    took_s: float | None = None
    taken_over: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """One batch until its results are in.

    Attributes:
        wanted: custom ids of the calls that somebody may still want.
        task: what is being done about it.
    """

    key: str
    account: str
    requests: int
    sent_unix_s: float
    batch_id: str | None = None
    wanted: set[str] = field(default_factory=set)
    ended: bool = False
    cancelling: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return not self.wanted and not self.ended

    def row(self) -> BatchRow:
        """As it is written down."""
        return BatchRow(self.key, self.account, self.batch_id, self.requests, self.sent_unix_s)


@dataclass(slots=True)
class _Holder:
    seen_s: float
    number: int
    outbox: dict[str, Delivery] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A call that is like one of a process of which nothing was heard since `at_s`."""

    ask: Ask
    holder: str
    at_s: float


class BatchBook:
    """State of the batcher; no I/O.

    Args:
        session: of Ray: a process of another session is gone.
        holder_timeout_s: a process that is silent for so long is gone.
    """

    def __init__(self, session: str, holder_timeout_s: float) -> None:
        self.session = session
        self.calls: dict[str, Call] = {}
        self.batches: dict[str, Batch] = {}
        self.by_ask: dict[str, Call] = {}
        self._alike: dict[tuple[str, str], dict[str, Call]] = {}
        self._holders: dict[str, _Holder] = {}
        self._numbers = itertools.count(1)
        self._doubts: list[_Doubt] = []
        self._holder_timeout_s = holder_timeout_s

    def __repr__(self) -> str:
        return f"<BatchBook calls={len(self.calls)} batches={len(self.batches)}>"

    def restore(
        self,
        batches: Iterable[BatchRow],
        calls: Iterable[CallRow],
        skip: frozenset[str],
        now_s: float,
    ) -> None:
        """Take in what an earlier batcher wrote down; `skip` are custom ids to leave out."""
        for row in batches:
            self.batches[row.key] = Batch(
                row.key, row.account, row.requests, row.sent_unix_s, row.batch_id
            )
        for each in calls:
            batch = self.batches.get(each.batch_key)
            if each.custom_id in skip or (batch is None and not each.ended):
                continue
            # A process of this Ray may live and is given time to be heard of.
            holder = each.holder if each.session == self.session and each.holder else None
            if holder is not None and holder not in self._holders:
                self.heard(holder, now_s)
            call = Call(
                each.custom_id,
                each.ask_id,
                holder,
                each.account,
                each.endpoint,
                each.digest,
                each.batch_key,
                each.ended,
                each.took_s,
            )
            self._enter(call)
            if batch is not None and not each.ended:
                batch.wanted.add(each.custom_id)

    # -- processes

    def heard(self, holder: str, now_s: float) -> int:
        """A process spoke; returns a number that is another one if it was gone meanwhile."""
        known = self._holders.get(holder)
        if known is None:
            known = self._holders[holder] = _Holder(now_s, next(self._numbers))
        known.seen_s = now_s
        return known.number

    def silent(self, now_s: float) -> list[str]:
        """Processes that are taken for dead."""
        limit_s = now_s - self._holder_timeout_s
        return [name for name, holder in self._holders.items() if holder.seen_s < limit_s]

    def of_holder(self, holder: str) -> list[Call]:
        """Calls that a process waits for."""
        return [call for call in self.calls.values() if call.holder == holder]

    def remove_holder(self, holder: str) -> None:
        """Forget a process."""
        self._holders.pop(holder, None)
        self._doubts = [doubt for doubt in self._doubts if doubt.holder != holder]

    def leave_behind(self, holder: str) -> list[Call]:
        """A process is gone; returns its calls, which belong to nobody now.

        What is neither answered nor in a batch is no use to anybody: it is for the caller to drop.
        """
        left = self.of_holder(holder)
        self.remove_holder(holder)
        for call in left:
            call.holder = None
        return left

    # -- calls

    def is_coming(self, call: Call) -> bool:
        """Whether its answer is there, or on its way."""
        return call.ended or (call.batch_key or "") in self.batches

    def add(self, ask: Ask, holder: str) -> Call:
        """A new call, not sent yet."""
        custom_id = uuid.uuid4().hex
        call = Call(custom_id, ask.ask_id, holder, ask.account, ask.endpoint, ask.digest)
        self._enter(call)
        return call

    def own(self, call: Call, ask_id: str, holder: str) -> None:
        """A call is a process's, under its name for it."""
        if self.by_ask.get(call.ask_id) is call:
            del self.by_ask[call.ask_id]
        call.ask_id, call.holder = ask_id, holder
        self.by_ask[ask_id] = call

    def left_behind(self, ask: Ask) -> Call | None:
        """A call alike that belongs to nobody and was sent."""
        for call in self._alike.get((ask.account, ask.digest), {}).values():
            batch = self.batches.get(call.batch_key or "")
            coming = batch is not None and not batch.cancelling
            if call.holder is None and (call.ended or coming):
                return call
        return None

    def doubt(self, ask: Ask, holder: str, now_s: float) -> bool:
        """Let a call wait if one alike is another process's of which nothing is heard yet."""
        doubt = _Doubt(ask, holder, now_s)
        if not self._is_open(doubt):
            return False
        self._doubts.append(doubt)
        return True

    def take_cleared(self) -> list[tuple[Ask, str]]:
        """Calls that waited so, and need not any more."""
        cleared = [doubt for doubt in self._doubts if not self._is_open(doubt)]
        if cleared:
            self._doubts = [doubt for doubt in self._doubts if doubt not in cleared]
        return [(doubt.ask, doubt.holder) for doubt in cleared]

    def drop(self, call: Call) -> None:
        """Forget a call, wherever it is."""
        self.calls.pop(call.custom_id, None)
        if self.by_ask.get(call.ask_id) is call:
            del self.by_ask[call.ask_id]
        alike = self._alike.get((call.account, call.digest))
        if alike is not None:
            alike.pop(call.custom_id, None)
            if not alike:
                del self._alike[call.account, call.digest]
        if (batch := self.batches.get(call.batch_key or "")) is not None:
            batch.wanted.discard(call.custom_id)

    def forget_ask(self, holder: str, ask_id: str) -> None:
        """A process gave up a call, whatever became of it."""
        if (known := self._holders.get(holder)) is not None:
            known.outbox.pop(ask_id, None)
        self._doubts = [doubt for doubt in self._doubts if doubt.ask.ask_id != ask_id]

    def row(self, call: Call) -> CallRow:
        """A call as it is written down."""
        return CallRow(
            call.custom_id,
            call.batch_key or "",
            call.ask_id,
            call.holder or "",
            self.session,
            call.account,
            call.endpoint,
            call.digest,
            ended=False,
            ended_unix_s=None,
            took_s=None,
        )

    # -- deliveries

    def outbox(self, holder: str) -> Iterable[Delivery]:
        """What a process has not acknowledged yet."""
        known = self._holders.get(holder)
        return () if known is None else known.outbox.values()

    def deliver(self, holder: str, delivery: Delivery) -> None:
        """Tell a process how a call of its ended."""
        if (known := self._holders.get(holder)) is not None:
            known.outbox[delivery.ask_id] = delivery

    def is_delivered(self, call: Call) -> bool:
        """Whether its delivery waits to be fetched."""
        known = self._holders.get(call.holder or "")
        return known is not None and call.ask_id in known.outbox

    def acked(self, holder: str, ask_id: str) -> Call | None:
        """A process has a delivery; returns the call that is over."""
        known = self._holders.get(holder)
        if known is None or known.outbox.pop(ask_id, None) is None:
            return None
        call = self.by_ask.get(ask_id)
        if call is not None:
            self.drop(call)
        return call

    def answer(self, call: Call, message: bytes | None, error: BackendError | None) -> None:
        """A call has ended; an error that nobody waits for is forgotten."""
        if (batch := self.batches.get(call.batch_key or "")) is not None:
            batch.wanted.discard(call.custom_id)
        call.ended = message is not None
        if call.holder is not None:
            self.deliver(
                call.holder, Delivery(call.ask_id, message, error, call.took_s, call.taken_over)
            )
        elif error is not None:
            self.drop(call)

    # -- batches

    def open_batch(self, account: str, calls: Iterable[Call], now_unix_s: float) -> Batch:
        """Calls are about to be sent together."""
        batch = Batch(uuid.uuid4().hex, account, 0, now_unix_s)
        for call in calls:
            call.batch_key = batch.key
            batch.wanted.add(call.custom_id)
        batch.requests = len(batch.wanted)
        self.batches[batch.key] = batch
        return batch

    def close_batch(self, batch: Batch) -> None:
        """Nothing of a batch is open any more."""
        self.batches.pop(batch.key, None)

    def snapshot(self) -> dict[str, Any]:
        """JSON-able, to look at."""
        return {
            "calls": len(self.calls),
            "left_behind": sum(call.holder is None for call in self.calls.values()),
            "in_doubt": len(self._doubts),
            "holders": len(self._holders),
            "batches": [
                {"batch_id": each.batch_id, "calls": each.requests, "wanted": len(each.wanted)}
                for each in self.batches.values()
            ],
        }

    def _enter(self, call: Call) -> None:
        self.calls[call.custom_id] = call
        self.by_ask[call.ask_id] = call
        self._alike.setdefault((call.account, call.digest), {})[call.custom_id] = call

    def _is_open(self, doubt: _Doubt) -> bool:
        alike = self._alike.get((doubt.ask.account, doubt.ask.digest), {})
        for call in alike.values():
            if call.holder is not None and call.holder != doubt.holder and call.batch_key:
                holder = self._holders.get(call.holder)
                if holder is None or holder.seen_s <= doubt.at_s:
                    return True
        return False
