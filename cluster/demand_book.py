"""Pure: counts what local models are given, for scaling them.

Kept as totals since the scheduler started: whoever scales takes differences.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agentcloud.cluster.demand import Backlog, Demand, ModelDemand, Spilled
from agentcloud.cluster.pool import EndpointClass
from agentcloud.cluster.waiting import Group
from agentcloud.cluster.weighing import Choice

#: Prompt tokens of a call, until some were seen.
_PRIOR_PROMPT_TOKENS: Final = 512
_ANY_LENGTH: Final = 1 << 30
_TINY_S: Final = 1e-3


class _Calls:
    def __init__(self) -> None:
        self.granted = 0
        self.replaceable = 0
        self.hosted_usd = 0.0
        self.prompt_tokens = 0


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
