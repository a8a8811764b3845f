"""Pure: what the scheduler knows of the load on local models, for scaling them.

Kept as totals since the scheduler started: whoever scales takes differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agentcloud.cluster.contracts import EndpointSpec
from agentcloud.cluster.pool import EndpointClass
from agentcloud.cluster.waiting import Group
from agentcloud.cluster.weighing import Choice

#: Prompt tokens of a call, until some were seen.
_PRIOR_PROMPT_TOKENS: Final = 512
_ANY_LENGTH: Final = 1 << 30
_TINY_S: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Expected:
    """A local model that may have replicas, though none may run now.

    Attributes:
        spec: what a replica of it is taken to be.
        start_s: how long a start is taken to last.
        broken: why none can be started; None: requests for it wait.
    """

    spec: EndpointSpec
    start_s: float
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """Calls of one local model.

    Attributes:
        granted: calls that its replicas were given.
        hosted_usd: what those calls would have cost at the cheapest hosted model able to take
            them; calls without one are not in `replaceable`.
        replaceable: calls with such a hosted model.
        inflight: calls that its replicas have now.
        calls_per_s: what one saturated replica takes.
        known: whether `calls_per_s` was measured.
    """

    granted: int = 0
    replaceable: int = 0
    hosted_usd: float = 0.0
    inflight: int = 0
    calls_per_s: float = 1.0
    known: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """Requests that wait, by the local models that could serve them, the cheapest first.

    Attributes:
        stranded: no endpoint able to serve them is there at all.
    """

    models: tuple[str, ...]
    waiting: int
    stranded: bool


@dataclass(slots=True)
class Spilled:
    """Calls that went to a hosted model though a local one was able."""

    calls: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """The load at one moment."""

    models: Mapping[str, ModelDemand] = field(default_factory=dict)
    backlogs: Sequence[Backlog] = ()
    spilled: Mapping[tuple[str, ...], Spilled] = field(default_factory=dict)


@dataclass(slots=True)
class _Calls:
    granted: int = 0
    replaceable: int = 0
    hosted_usd: float = 0.0
    prompt_tokens: int = 0


class DemandBook:
    """Counts grants by model; told of each, it does no more than a few additions."""

    def __init__(self) -> None:
        self._calls: dict[str, _Calls] = {}
        self._spilled: dict[tuple[str, ...], Spilled] = {}

    def granted(self, choice: Choice, input_tokens: int) -> None:
        """A call was given to the best of a choice."""
        best = choice.best
        cls = best.option.cls
        if cls.is_local:
            model = cls.spec.model
            calls = self._calls.get(model)
            if calls is None:
                calls = self._calls[model] = _Calls()
            calls.granted += 1
            calls.prompt_tokens += input_tokens
            least_usd = None
            for each in choice.weighed:
                if not each.option.cls.is_local and (
                    least_usd is None or each.cost_usd < least_usd
                ):
                    least_usd = each.cost_usd
            if least_usd is not None:
                calls.replaceable += 1
                calls.hosted_usd += least_usd
        elif len(choice.weighed) > 1 and (models := _models(e.option.cls for e in choice.weighed)):
            spilled = self._spilled.get(models)
            if spilled is None:
                spilled = self._spilled[models] = Spilled()
            spilled.calls += 1
            spilled.usd += best.cost_usd

    def demand(self, classes: Iterable[EndpointClass], groups: Iterable[Group]) -> Demand:
        """The load now.

        Args:
            classes: all of the pool.
            groups: those with somebody waiting.
        """
        models: dict[str, ModelDemand] = {}
        for cls in classes:
            # The class that serves, where settings have just changed and there are two.
            if cls.is_local and (cls.members or cls.spec.model not in models):
                models[cls.spec.model] = self._model(cls, models.get(cls.spec.model))
        waiting: dict[tuple[tuple[str, ...], bool], int] = {}
        for group in groups:
            local = _models(option.cls for option in group.options)
            if local:
                stranded = not any(option.cls.members for option in group.options)
                key = local, stranded
                waiting[key] = waiting.get(key, 0) + group.live
        return Demand(
            models,
            tuple(Backlog(names, count, alone) for (names, alone), count in waiting.items()),
            {names: Spilled(each.calls, each.usd) for names, each in self._spilled.items()},
        )

    def _model(self, cls: EndpointClass, other: ModelDemand | None) -> ModelDemand:
        calls = self._calls.get(cls.spec.model, _Calls())
        prompt = calls.prompt_tokens // calls.granted if calls.granted else _PRIOR_PROMPT_TOKENS
        per_s, known = _calls_per_s(cls, prompt)
        inflight = sum(state.inflight for state in cls.members.values())
        return ModelDemand(
            granted=calls.granted,
            replaceable=calls.replaceable,
            hosted_usd=calls.hosted_usd,
            inflight=inflight + (other.inflight if other else 0),
            calls_per_s=per_s,
            known=known,
        )

    def __repr__(self) -> str:
        return f"<DemandBook {len(self._calls)} models>"


def _calls_per_s(cls: EndpointClass, prompt_tokens: int) -> tuple[float, bool]:
    slots = cls.spec.max_concurrency
    output_tokens = cls.predictor.output_tokens(_ANY_LENGTH)
    estimate = cls.predictor.estimate(slots, float(prompt_tokens), output_tokens)
    return slots / max(estimate.total_s, _TINY_S), estimate.known


def _models(classes: Iterable[EndpointClass]) -> tuple[str, ...]:
    """The local models among classes, the cheapest by the hour of its slots first."""
    local = [cls for cls in classes if cls.is_local]
    if len(local) > 1:
        local.sort(key=_usd_per_slot)
    return tuple(dict.fromkeys(cls.spec.model for cls in local))


def _usd_per_slot(cls: EndpointClass) -> float:
    return cls.usd_per_s / cls.spec.max_concurrency
