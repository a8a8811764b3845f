"""Pure: waiting requests choose their tier anew when endpoints come, go, or stop answering."""

from __future__ import annotations

from collections.abc import Mapping

from agentcloud.cluster.dispatch import Dispatcher
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.fallback import Fallbacks
from agentcloud.cluster.waiting import Waiter


class Rerouting:
    """Moves requests along their chains; without chains it does nothing.

    Caveat: a change looks at all that wait, so it is done once a cooldown, not at each failure.
    """

    def __init__(
        self, fallbacks: Fallbacks, dispatcher: Dispatcher, waiters: Mapping[str, Waiter]
    ) -> None:
        self._fallbacks = fallbacks
        self._dispatcher = dispatcher
        self._waiters = waiters
        #: Endpoints that do not answer, with the end of the cooldown that is known of.
        self._silent: dict[str, float] = {}

    def moves(self, waiter: Waiter, now_s: float) -> bool:
        """Choose a request's tier anew; whether it is another than before."""
        before = waiter.target
        target = self._fallbacks.choose(waiter.request, waiter.asked, now_s)
        waiter.target, waiter.why_target = target.name, target.why
        return waiter.target != before

    def retarget(self, now_s: float) -> None:
        """Endpoints came, went, or stopped answering: all that wait choose anew."""
        if not self._fallbacks:
            return
        for waiter in list(self._waiters.values()):
            # Those that wait for money are in no group.
            if waiter.group is not None and self.moves(waiter, now_s):
                self._dispatcher.remove(waiter)
                self._dispatcher.add(waiter)

    def heard_of(self, state: EndpointState, now_s: float) -> None:
        """A call ended there: requests choose anew if it has stopped answering."""
        if not self._fallbacks:
            return
        name, circuit = state.spec.name, state.circuit
        if circuit.is_answering:
            self._silent.pop(name, None)
        elif self._silent.get(name) != circuit.until_s:
            self._silent[name] = circuit.until_s
            self.retarget(now_s)

    def forget(self, name: str) -> None:
        """An endpoint came anew or left."""
        self._silent.pop(name, None)

    def __repr__(self) -> str:
        return f"<Rerouting chains={bool(self._fallbacks)} silent={sorted(self._silent)}>"
