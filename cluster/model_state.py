"""What the fleet remembers of one model: settings in force and proven, target, what went wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from agentcloud.cluster.config_models import LocalModel, Replicas
from agentcloud.cluster.contracts import EndpointSpec
from agentcloud.cluster.fleet_memory import ModelMemory
from agentcloud.cluster.fleet_status import ReplicaState
from agentcloud.cluster.keeper import Keeper
from agentcloud.cluster.scaling import Crew, Target

#: A model that cannot be started is tried again after this, doubling up to the longest.
_FIRST_RETRY_S: Final = 60.0
_LONGEST_RETRY_S: Final = 1800.0
#: Start-up time is blended over starts by this.
_BLEND: Final = 0.5


class ModelState:
    """One model of the fleet, apart from its replicas."""

    def __init__(self, settings: LocalModel) -> None:
        self.settings = settings
        self.is_leaving = False
        self.spec: EndpointSpec | None = None
        self.start_s: float | None = None
        self.problem = ""
        self.changed_s = time.monotonic()
        self._pinned: int | None = None
        self._proven: LocalModel | None = None
        self._retry_s = _FIRST_RETRY_S
        self._mended_s = 0.0
        self._room: tuple[int, float] | None = None
        self.target = Target(self.least, f"the bounds are {settings.replicas}")

    @classmethod
    def recalled(cls, memory: ModelMemory) -> ModelState:
        """As it was, as far as it is remembered."""
        model = cls(memory.settings)
        if memory.pinned is not None:
            model.pin(memory.pinned)
        model._proven, model.is_leaving = memory.proven, memory.is_leaving
        return model

    def remembered(self) -> ModelMemory:
        """What is kept of it."""
        return ModelMemory(
            settings=self.settings,
            proven=self._proven,
            pinned=self._pinned,
            is_leaving=self.is_leaving,
        )

    @property
    def least(self) -> int:
        """As many replicas at least."""
        return self.settings.replicas.min if self._pinned is None else self._pinned

    @property
    def most(self) -> int:
        """As many replicas at most."""
        return self.settings.replicas.max if self._pinned is None else self._pinned

    def pin(self, replicas: int) -> None:
        """Set the number by hand."""
        self._pinned = replicas
        self.target = Target(replicas, f"set to {replicas} by hand")
        self.changed_s = time.monotonic()

    def take(self, settings: LocalModel) -> str:
        """Take other settings; returns what that means, in words."""
        words = []
        if self.is_outdated(settings):
            what = ", ".join(_differing(_engine_part(self.settings), _engine_part(settings)))
            words.append(f"replicas are replaced ({what})")
        if settings.replicas != self.settings.replicas:
            words.append(f"replicas {self.settings.replicas} -> {settings.replicas}")
        self.settings, self.spec = settings, None
        self._pinned = self._room = None
        self.problem, self._retry_s = "", _FIRST_RETRY_S
        return "; ".join(words) or "tier or price changed"

    def is_outdated(self, settings: LocalModel) -> bool:
        """Whether a replica started with `settings` has to be replaced."""
        return _engine_part(settings) != _engine_part(self.settings)

    def has_served(self, settings: LocalModel) -> bool:
        """Whether a replica with these settings has served."""
        return self._proven is not None and _engine_part(self._proven) == _engine_part(settings)

    def served(self, settings: LocalModel, spec: EndpointSpec | None, took_s: float | None) -> bool:
        """A replica with the settings in force is ready; whether it is the first of them.

        Args:
            settings: its own.
            spec: the endpoint it is.
            took_s: how long its start took; None: it ran already.
        """
        first = not self.has_served(settings) or self.spec is None
        self._proven, self.spec, self._retry_s = settings, spec, _FIRST_RETRY_S
        if took_s is not None:
            before = self.start_s
            self.start_s = took_s if before is None else before + _BLEND * (took_s - before)
        return first

    def go_back(self) -> bool:
        """Return to the settings that have served; False if there are none."""
        if self._proven is None:
            return False
        self.settings, self.spec = self._proven, None
        return True

    def breaks(self, why: str) -> None:
        """No replica can be started: requests are refused, until it is tried again."""
        self.problem = why
        self._mended_s = time.monotonic() + self._retry_s
        self._retry_s = min(_LONGEST_RETRY_S, 2.0 * self._retry_s)

    def mends(self, now_s: float) -> bool:
        """Whether a start is to be tried again now; told once."""
        if not self.problem or now_s < self._mended_s:
            return False
        self.problem = ""
        return True

    def no_room(self, replicas: int, for_s: float, why: str) -> None:
        """There is no room for more than `replicas`: none is asked for during `for_s`."""
        self._room = replicas, time.monotonic() + for_s
        self.target = Target(self.target.replicas, why)

    def crew(self, keepers: Sequence[Keeper], start_s: float, now_s: float) -> Crew:
        """As scaling sees it."""
        most = self.most
        if self._room is not None and now_s < self._room[1]:
            most = min(most, self._room[0])
        states = (ReplicaState.STARTING, ReplicaState.PENDING)
        starting = [now_s - keeper.launched_s for keeper in keepers if keeper.state in states]
        takes_s = self.start_s or start_s
        return Crew(
            least=self.least,
            most=0 if self.problem else most,
            ready=sum(keeper.state is ReplicaState.READY for keeper in keepers),
            start_s=takes_s,
            start_left_s=max(0.0, takes_s - max(starting, default=0.0)),
            usd_per_hour=_usd_per_hour(self),
        )


def _usd_per_hour(model: ModelState) -> float | None:
    if model.spec is not None:
        return None if model.spec.usd_per_hour is None else float(model.spec.usd_per_hour)
    hourly: Decimal | None = model.settings.usd_per_gpu_hour
    if hourly is None:
        return None
    degree = model.settings.tensor_parallel
    ranks = (1 if degree == "auto" else degree) * model.settings.pipeline_parallel
    return float(hourly) * (ranks if model.settings.gpu else 1)


def _engine_part(settings: LocalModel) -> LocalModel:
    """What of a model's settings its running engine depends on."""
    rest = {"replicas": Replicas(max=1), "tier": "", "usd_per_gpu_hour": None}
    return settings.model_copy(update=rest)


def _differing(before: LocalModel, after: LocalModel) -> list[str]:
    fields = type(before).model_fields
    return [name for name in fields if getattr(before, name) != getattr(after, name)]
