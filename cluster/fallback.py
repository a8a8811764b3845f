"""Pure: chains of tiers: where a call goes when nothing of its own tier can serve it.

A chain is what fleet.yaml's `fallbacks:` says, followed on: `small: [medium]`, `medium: [large]`
takes a call from small over medium to large. A tier that is merely busy, or at a rate limit that
this call has not met, is waited for: falling back costs money or quality that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agentcloud.cluster.chains import chains
from agentcloud.cluster.contracts import LeaseRequest
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.registry import Registry


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes.

    Attributes:
        name: tier or model.
        why: why not where it was meant to go, in words; empty where it does.
    """

    name: str
    why: str = ""


class Fallbacks:
    """Chooses among the tiers of a request's chain."""

    def __init__(self, registry: Registry, fallbacks: Mapping[str, Sequence[str]]) -> None:
        self._registry = registry
        self.configure(fallbacks)

    def configure(self, fallbacks: Mapping[str, Sequence[str]]) -> None:
        """Take another fleet.yaml's chains."""
        self._chains = chains(fallbacks)

    def __bool__(self) -> bool:
        return bool(self._chains)

    def chain(self, request: LeaseRequest, asked: str) -> tuple[str, ...]:
        """Where a request may go beside `asked`, in order."""
        routing = request.routing
        if routing.fallback is False or routing.endpoint is not None:
            return ()
        return self._chains.get(asked, ())

    def choose(self, request: LeaseRequest, asked: str, now_s: float) -> Target:
        """The first of its chain where something answers that has not failed this very call.

        Where nothing does: the first with an endpoint that is able at all, to wait for it; and
        `asked` itself if there is none.
        """
        chain = self.chain(request, asked)
        if not chain or self._rests(request, asked):
            return Target(asked)
        waits: str | None = None
        for name in (asked, *chain):
            able = False
            for state in self._able(request, name):
                able = True
                if state.spec.name not in request.avoid and _answers(state, now_s):
                    return self._target(request, asked, name, now_s)
            if able and waits is None:
                waits = name
        return self._target(request, asked, waits or asked, now_s)

    def _target(self, request: LeaseRequest, asked: str, name: str, now_s: float) -> Target:
        return Target(name, "" if name == asked else self._why(request, asked, now_s))

    def _rests(self, request: LeaseRequest, target: str) -> bool:
        """Whether a replica for it starts as soon as somebody waits: that is no outage."""
        options = self._registry.options(request, target, free_only=False)
        return any(option.cls.is_resting for option in options) and all(
            not option.cls.members for option in options
        )

    def _able(self, request: LeaseRequest, target: str) -> Iterator[EndpointState]:
        for cls in self._registry.able(request, target):
            yield from cls.members.values()

    def _why(self, request: LeaseRequest, asked: str, now_s: float) -> str:
        """Why nothing of `asked` serves the request: its first two endpoints, by name."""
        states = list(self._able(request, asked))
        if not states:
            return str(self._registry.refusal(request, asked))
        told = [
            f"{state.spec.name} "
            + (
                "failed this call"
                if state.spec.name in request.avoid
                else state.circuit.tell(now_s)
            )
            for state in states[:2]
        ]
        more = f", and {len(states) - 2} more" if len(states) > 2 else ""
        return f"{', '.join(told)}{more}"


def _answers(state: EndpointState, now_s: float) -> bool:
    """Whether it is in rotation, or may be probed by this very call."""
    return state.circuit.is_answering or state.admits(now_s)
