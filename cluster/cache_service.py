"""The response cache of a cluster: what is known, what is on its way, what is kept.

Answers are told to those who wait as they come, and written meanwhile: one that is lost with the
process only costs a call more. A database that fails makes calls miss; it fails none of them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import structlog

from agentcloud.cluster.cache_flights import Flights
from agentcloud.cluster.cache_store import TRIM_EVERY_S, Answers, AnswersLost
from agentcloud.cluster.cache_wire import Alone, Answered, Ask, Entry, Send, Tell, Told, Verdict
from agentcloud.cluster.clock import Clock, SystemClock
from agentcloud.cluster.group_writer import GroupWriter

#: A process that says nothing for so long is dead.
HOLDER_TIMEOUT_S: Final = 15.0
#: After a restart, those that wait are heard before those that send by no more than this.
REJOIN_S: Final = 3.0
#: `wait` without news ends after this.
KEEP_ALIVE_S: Final = 3.0
#: Answers that were just made or asked for are in memory too: before they are on disk they are
#: nowhere else.
RECENT_BYTES: Final = 32_000_000
#: A database that takes longer is not waited for: calls are sent.
READ_S: Final = 2.0
_LOOK_S: Final = 1.0

log = structlog.get_logger()


@dataclass(slots=True)
class Counts:
    """What became of the calls of one tier or model since the cache started.

    Attributes:
        hits: answered by what was kept.
        shared: answered by an equal call that was under way.
        misses: sent.
        saved_usd: what hits and shared ones did not cost, as far as it is known.
    """

    hits: int = 0
    shared: int = 0
    misses: int = 0
    saved_usd: Decimal = Decimal(0)


class CacheService:
    """The cache; one event loop uses it, two threads of its own the database."""

    def __init__(
        self,
        answers: Answers | None,
        *,
        ttl_s: float,
        clock: Clock | None = None,
        unix_s: Callable[[], float] = time.time,
        holder_timeout_s: float = HOLDER_TIMEOUT_S,
    ) -> None:
        """Begin; `keep_time` is to run beside it.

        Args:
            answers: where they are kept; None: equal calls are shared while they are under way.
            ttl_s: an answer is given again for so long.
            clock: of signs of life.
            unix_s: the wall clock, of answers.
            holder_timeout_s: a process that is silent for so long is dead.
        """
        self.epoch = uuid.uuid4().hex
        self._answers = answers
        self._ttl_s = ttl_s
        self._clock = clock or SystemClock()
        self._unix_s = unix_s
        self._flights = Flights(holder_timeout_s)
        self._counts: defaultdict[str, Counts] = defaultdict(Counts)
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._recent_bytes = 0
        self._wanted: dict[str, asyncio.Future[Entry | None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._reading_since_s = 0.0
        self._wakes: dict[str, asyncio.Event] = {}
        self._writer = None if answers is None else GroupWriter(self._write, name="response-writer")

    def __repr__(self) -> str:
        return f"<CacheService {self._flights!r} recent={len(self._recent)}>"

    # -- the processes' side

    async def exchange(self, tell: Tell) -> Told:
        """As `CachePort.exchange`."""
        flights, holder = self._flights, tell.holder
        number = flights.heard(holder, self._clock.now())
        for ask in tell.sending:
            flights.sending(ask, holder)
        for landed in tell.landed:
            key = landed.ask.key
            answer = Entry(self._unix_s(), landed.saved_usd, landed.body)
            if landed.is_kept:
                self._remember(key, answer)
                if self._writer is not None:
                    self._writer.put({key: answer}, _nothing)
            for each in flights.landed(landed.ask, answer):
                self._count(each, answer, is_shared=True)
        for fell in tell.fell:
            flights.fell(fell)
        for ask_id in tell.drops:
            flights.drop(ask_id)
        asks = [*tell.asks, *tell.again]
        known = await self._look([ask.key for ask in asks])
        now_s = self._unix_s()
        verdicts: list[Verdict] = []
        for index, ask in enumerate(asks):
            # What came while the database was asked is in memory only.
            entry = self._recent.get(ask.key) or known.get(ask.key)
            if entry is not None and entry.made_unix_s + self._ttl_s > now_s:
                age_s = max(0.0, now_s - entry.made_unix_s)
                verdicts.append(Answered(ask, entry, age_s))
                self._count(ask, entry)
                self._remember(ask.key, entry)
                flights.drop(ask.ask_id)  # It may be one that is told again.
            elif index < len(tell.asks):
                flights.ask(ask, holder)
            else:
                flights.ask_again(ask, holder, self._clock.now() + REJOIN_S)
        verdicts += self._taken(holder)
        self._wake_others(holder)
        return Told(f"{self.epoch}:{number}", verdicts)

    async def wait(self, holder: str) -> Told:
        """As `CachePort.wait`."""
        number = self._flights.heard(holder, self._clock.now())
        verdicts = self._taken(holder)
        if not verdicts:
            wake = self._wakes[holder] = asyncio.Event()
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await wake.wait()
            except TimeoutError:
                pass
            finally:
                if self._wakes.get(holder) is wake:
                    del self._wakes[holder]
            number = self._flights.heard(holder, self._clock.now())
            verdicts = self._taken(holder)
        return Told(f"{self.epoch}:{number}", verdicts)

    async def leave(self, holder: str) -> None:
        """As `CachePort.leave`."""
        self._flights.leave(holder)
        self._wake_others(holder)

    # -- those who run it

    def look(self) -> None:
        """Drop the processes that are silent, and give up those that do not come back."""
        self._flights.pass_on_orphans(self._clock.now())
        for name in self._flights.drop_silent(self._clock.now()):
            log.warning("process is silent, others take over what it was sending", holder=name)
        self._wake_others(None)

    async def keep_time(self) -> None:
        """Drop silent processes and old answers, for as long as it runs."""
        trim_at_s = self._clock.now()
        while True:
            try:
                self.look()
            except Exception:
                log.exception("the cache failed on a look at its processes")
            if self._writer is not None and self._clock.now() >= trim_at_s:
                trim_at_s = self._clock.now() + TRIM_EVERY_S
                self._writer.put({}, _nothing)
            await self._clock.sleep(_LOOK_S)

    def counts(self) -> dict[str, Counts]:
        """By the tier or model that was asked for."""
        return dict(self._counts)

    async def snapshot(self) -> dict[str, Any]:
        """What it did since it started and what it holds, JSON-able."""
        every = self._counts.values()
        hits, shared = sum(each.hits for each in every), sum(each.shared for each in every)
        misses = sum(each.misses for each in every)
        asked = hits + shared + misses
        held = None
        if self._answers is not None:
            try:
                held = await asyncio.to_thread(self._answers.held)
            except AnswersLost as why:
                log.warning("what the cache holds cannot be told", why=str(why))
        saved_usd = sum((each.saved_usd for each in every), Decimal(0))
        return {
            "hits": hits,
            "shared": shared,
            "misses": misses,
            "hit_rate": (hits + shared) / asked if asked else None,
            "saved_usd": format(saved_usd, "f"),
            "under_way": len(self._flights),
            "waiting": self._flights.waiting,
            "answers": None if held is None else held[0],
            "bytes": None if held is None else held[1],
        }

    def close(self) -> None:
        """Write what is there, and end."""
        if self._writer is not None:
            self._writer.close()
        if self._answers is not None:
            self._answers.close()

    # -- inside

    def _taken(self, holder: str) -> list[Verdict]:
        verdicts = self._flights.take_outbox(holder)
        for each in verdicts:
            if isinstance(each, Send | Alone):
                self._counts[each.ask.model].misses += 1
        return verdicts

    def _count(self, ask: Ask, entry: Entry, *, is_shared: bool = False) -> None:
        counts = self._counts[ask.model]
        counts.hits += not is_shared
        counts.shared += is_shared
        counts.saved_usd += entry.saved_usd or Decimal(0)

    def _wake_others(self, mine: str | None) -> None:
        for holder in self._flights.told_to():
            if holder != mine and (wake := self._wakes.get(holder)) is not None:
                wake.set()

    def _remember(self, key: str, entry: Entry) -> None:
        if (old := self._recent.pop(key, None)) is not None:
            self._recent_bytes -= len(old.body)
        self._recent[key] = entry
        self._recent_bytes += len(entry.body)
        while self._recent_bytes > RECENT_BYTES:
            _, gone = self._recent.popitem(last=False)
            self._recent_bytes -= len(gone.body)

    async def _look(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those of the answers that are kept; what comes meanwhile is read together next."""
        loop = asyncio.get_running_loop()
        if self._answers is None or self._is_stuck(loop.time()):
            return {}
        asked: dict[str, asyncio.Future[Entry | None]] = {}
        for key in keys:
            if key not in self._recent:
                if key not in self._wanted:
                    self._wanted[key] = loop.create_future()
                asked[key] = self._wanted[key]
        if not asked:
            return {}
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(self._answers))
        # Others wait for them too: unlike `gather`, this cancels none.
        done, late = await asyncio.wait(asked.values(), timeout=READ_S)
        if late:
            log.error("kept answers are not read in time, calls are sent", answers=len(late))
        return {
            key: entry
            for key, each in asked.items()
            if each in done and (entry := each.result()) is not None
        }

    def _is_stuck(self, now_s: float) -> bool:
        return self._reading is not None and now_s - self._reading_since_s > READ_S

    async def _read(self, answers: Answers) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            self._reading_since_s = asyncio.get_running_loop().time()
            found: Mapping[str, Entry] = {}
            try:
                found = await asyncio.to_thread(answers.read, list(wanted))
            except Exception as why:
                # Nobody must wait for what nobody reads any more.
                log.error("kept answers cannot be read, calls are sent", why=str(why))
            for key, future in wanted.items():
                future.set_result(found.get(key))
        self._reading = None

    def _write(self, batches: Sequence[Mapping[str, Entry]], _again: bool) -> None:
        """In the writer's thread: what cannot be written is dropped, so that nothing piles up."""
        assert self._answers is not None
        entries = {key: entry for batch in batches for key, entry in batch.items()}
        try:
            self._answers.write(entries)
        except AnswersLost as why:
            log.error("answers are not kept", answers=len(entries), why=str(why))


def _nothing() -> None:
    """Nobody waits for an answer to be on disk."""
