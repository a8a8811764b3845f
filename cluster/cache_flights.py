"""Pure: single flight over the cluster: of equal calls one is sent, and the others wait for it.

A claim is its process's: it lasts while the call is under way and the process is heard of. One
that falls silent loses its claims, and of those who wait the first is told to send. Nobody waits
for ever: a call's sends are bounded in number and time, and a caller's own deadline holds besides.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentcloud.cluster.cache_wire import (
    Alone,
    Answered,
    Ask,
    Entry,
    Fault,
    Fell,
    Send,
    Verdict,
)

#: Of equal calls so many are sent one after the other and fail; then the rest is not held up any
#: longer: every one is sent by itself.
MOST_FELL: Final = 2


class _Route(NamedTuple):
    """What flies together: calls that can wait for hours hold up none that cannot."""

    key: str
    patient: bool


@dataclass(slots=True)
class _Flight:
    """A call under way: who sends it, and the asks that wait, in order.

    Attributes:
        sender: None: an earlier instance knew who.
        until_s: so long the sender has to say so.
    """

    sender: str | None
    waiting: dict[str, Ask] = field(default_factory=dict)
    fell: int = 0
    until_s: float = 0.0


class Flights:
    """Who sends what, who waits for it, and what is to be told to whom.

    Guarantee: of equal calls one at a time is told `Send`, unless its process was silent for
    longer than `holder_timeout_s` and yet lives.
    """

    def __init__(self, holder_timeout_s: float) -> None:
        self._timeout_s = holder_timeout_s
        self._flights: dict[_Route, _Flight] = {}
        #: Process -> its asks without an answer; ask -> its process.
        self._asks: defaultdict[str, dict[str, Ask]] = defaultdict(dict)
        self._holders: dict[str, str] = {}
        self._heard_s: dict[str, float] = {}
        self._numbers: dict[str, int] = {}
        self._next = itertools.count(1)
        self._outbox: defaultdict[str, list[Verdict]] = defaultdict(list)
        #: Flights whose sender has not been heard of.
        self._orphans: set[_Route] = set()

    def __repr__(self) -> str:
        return f"<Flights {len(self._flights)} waiting={self.waiting}>"

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """Calls that wait for another's answer."""
        return sum(len(flight.waiting) for flight in self._flights.values())

    def heard(self, holder: str, now_s: float) -> int:
        """A process gave a sign of life.

        Returns:
            Its number, another one where all that it had asked was dropped before.
        """
        self._heard_s[holder] = now_s
        if holder not in self._numbers:
            self._numbers[holder] = next(self._next)
        return self._numbers[holder]

    def take_outbox(self, holder: str) -> list[Verdict]:
        """What a process is to be told."""
        return self._outbox.pop(holder, [])

    def ask(self, ask: Ask, holder: str) -> bool:
        """A call whose answer is not there; whether it is the one to send."""
        route = _route(ask)
        flight = self._flights.get(route)
        self._holders[ask.ask_id] = holder
        self._asks[holder][ask.ask_id] = ask
        # Three cases: nobody sends it yet; it was told to send, and asks again; another sends it.
        if flight is None:
            flight = self._flights[route] = _Flight(ask.ask_id)
        if flight.sender == ask.ask_id:
            self._outbox[holder].append(Send(ask))
            return True
        flight.waiting[ask.ask_id] = ask
        return False

    def ask_again(self, ask: Ask, holder: str, until_s: float) -> None:
        """A call that waited when an earlier instance ended.

        Args:
            ask: the call.
            holder: its process.
            until_s: until then the one that it waited for may be heard of, too.
        """
        route = _route(ask)
        if route not in self._flights:
            self._flights[route] = _Flight(None, until_s=until_s)
            self._orphans.add(route)
        self.ask(ask, holder)

    def sending(self, ask: Ask, holder: str) -> None:
        """A call that was told to send by an earlier instance is under way."""
        self._holders[ask.ask_id] = holder
        self._asks[holder][ask.ask_id] = ask
        route = _route(ask)
        flight = self._flights.setdefault(route, _Flight(ask.ask_id))
        if flight.sender is None:
            flight.sender = ask.ask_id
            self._orphans.discard(route)

    def landed(self, ask: Ask, entry: Entry) -> list[Ask]:
        """An answer is there, whoever made it: who waited for it, and is told."""
        self._forget(ask.ask_id)
        told: list[Ask] = []
        for patient in (False, True):
            flight = self._end(_Route(ask.key, patient))
            if flight is not None:
                # One that still sends beside this one, its claim having passed on, ends by itself.
                told += flight.waiting.values()
        for each in told:
            self._tell(each, Answered(each, entry, None))
        return told

    def fell(self, fell: Fell) -> None:
        """A call that was sent failed: its error is also the others', or another sends."""
        ask = fell.ask
        self._forget(ask.ask_id)
        flight = self._flights.get(_route(ask))
        if flight is None or flight.sender != ask.ask_id:
            return
        if fell.error is not None:
            self._end(_route(ask))
            for each in flight.waiting.values():
                self._tell(each, Fault(each, fell.error))
            return
        flight.fell += not fell.given_up
        self._pass_on(_route(ask), flight)

    def drop(self, ask_id: str) -> None:
        """The caller of an ask went away."""
        holder = self._holders.get(ask_id)
        ask = None if holder is None else self._asks[holder].get(ask_id)
        if ask is None:
            return
        self._forget(ask_id)
        flight = self._flights.get(_route(ask))
        if flight is None:
            return
        flight.waiting.pop(ask_id, None)
        if flight.sender == ask_id or (flight.sender is None and not flight.waiting):
            self._pass_on(_route(ask), flight)

    def leave(self, holder: str) -> None:
        """A process is gone, with all that it asked and sent."""
        self._heard_s.pop(holder, None)
        self._numbers.pop(holder, None)
        for ask_id in list(self._asks.get(holder, ())):
            self.drop(ask_id)
        self._asks.pop(holder, None)
        self._outbox.pop(holder, None)

    def drop_silent(self, now_s: float) -> list[str]:
        """Forget the processes that were silent for too long; those of them that had asked."""
        silent = [name for name, at_s in self._heard_s.items() if now_s - at_s > self._timeout_s]
        had_asked = [name for name in silent if self._asks.get(name)]
        # None of them may be told to take over from another of them.
        for name in had_asked:
            for ask in self._asks[name].values():
                if (flight := self._flights.get(_route(ask))) is not None:
                    flight.waiting.pop(ask.ask_id, None)
        for name in silent:
            self.leave(name)
        return had_asked

    def pass_on_orphans(self, now_s: float) -> None:
        """Of those whose sender has not been heard of in time, another sends."""
        for route in [each for each in self._orphans if self._flights[each].until_s <= now_s]:
            self._pass_on(route, self._flights[route])

    def told_to(self) -> Iterable[str]:
        """The processes that there is something to tell."""
        return self._outbox.keys()

    def _pass_on(self, route: _Route, flight: _Flight) -> None:
        """The sender is gone: the next one sends, or all the others do."""
        waiting = flight.waiting
        self._orphans.discard(route)
        if not waiting:
            self._end(route)
        elif flight.fell < MOST_FELL:
            following = next(iter(waiting.values()))
            flight.sender = following.ask_id
            del waiting[flight.sender]
            self._outbox[self._holders[flight.sender]].append(Send(following))
        else:
            self._end(route)
            for each in waiting.values():
                self._tell(each, Alone(each))

    def _end(self, route: _Route) -> _Flight | None:
        self._orphans.discard(route)
        return self._flights.pop(route, None)

    def _tell(self, ask: Ask, verdict: Verdict) -> None:
        """The last word on an ask."""
        self._outbox[self._holders[ask.ask_id]].append(verdict)
        self._forget(ask.ask_id)

    def _forget(self, ask_id: str) -> None:
        holder = self._holders.pop(ask_id, None)
        if holder is not None:
            self._asks[holder].pop(ask_id, None)


def _route(ask: Ask) -> _Route:
    return _Route(ask.key, ask.patient)
