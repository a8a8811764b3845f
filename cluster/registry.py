"""Pure: which endpoints there are, and which of them are able to serve a request."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Literal, Protocol

from agentcloud.cluster.circuit import Standing
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.config_models import Limits
from agentcloud.cluster.contracts import EndpointKind, EndpointSpec, LeaseRequest, LoadReport
from agentcloud.cluster.demand import Expected
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.errors import NoEndpoint
from agentcloud.cluster.limits import AccountLimits
from agentcloud.cluster.pool import ClassKey, EndpointClass, class_key
from agentcloud.cluster.predict import PRIOR_OUTPUT_TOKENS
from agentcloud.cluster.waiting import Option, needs_of


class Pricer(Protocol):
    """What choosing and reserving need of the catalogue."""

    @property
    def price_breaks(self) -> tuple[int, ...]:
        """Prompt lengths, tokens, above which some model's prices change; ascending."""
        ...

    def worst_case_usd(
        self,
        model: str,
        input_tokens: int,
        max_output_tokens: int,
        *,
        cache_ttl: Literal["5m", "1h"] | None = "1h",
        batch: bool = False,
    ) -> Decimal | None:
        """The most that a request can cost, USD; None where the model has no price."""
        ...


class Registry:
    """All endpoints, in classes of equals, with the limits of their accounts."""

    def __init__(self, config: FleetConfig, pricer: Pricer) -> None:
        self.config = config
        self.usd_per_hour_waited = float(config.usd_per_hour_waited)
        self.pricer = pricer
        self.endpoints: dict[str, EndpointState] = {}
        self.classes: dict[ClassKey, EndpointClass] = {}
        self.limiters: dict[str, AccountLimits] = {}
        #: Raised by every change after which waiting groups must be formed anew.
        self.version = 0
        #: Whether limits are taken to be used up at first: somebody has sent calls before us.
        self.limits_start_empty = False
        self._expected: dict[str, EndpointClass] = {}
        self._pins: set[str] = set()
        self._sizes: tuple[list[int], list[int]] = ([], [])
        self._patiences: list[float] = []
        self._breaks = pricer.price_breaks
        self._prices: dict[tuple[str, int, bool], tuple[float, float] | None] = {}

    def register(self, spec: EndpointSpec, now_s: float) -> EndpointState:
        """Add an endpoint, or bring one back: its health starts anew."""
        known = self.endpoints.get(spec.name)
        if known is not None:
            # Two cases: the same endpoint is told again (its calls in flight still count), or a
            # new one has taken the name (calls on the old one died with it).
            if known.spec == spec and known.circuit.standing is not Standing.DOWN:
                was_unusable = known.circuit.standing is Standing.UNUSABLE
                known.circuit = type(known.circuit)()
                known.cls.place(known, now_s)
                self.version += was_unusable
                return known
            self.unregister(spec.name, now_s)
        cls = self._class_of(spec, now_s)
        self._came(cls)
        if not cls.is_usable():
            self.version += 1
        state = EndpointState(spec, cls)
        self.endpoints[spec.name] = cls.members[spec.name] = state
        cls.place(state, now_s)
        return state

    def expect(self, expected: Iterable[Expected], now_s: float) -> None:
        """Take the local models that may have replicas though none runs: all of them, each time."""
        for cls in self._expected.values():
            cls.start_s, cls.broken = None, ""
        self._expected = {}
        for each in expected:
            cls = self._expected[each.spec.model] = self._class_of(each.spec, now_s)
            cls.start_s = each.start_s if each.broken is None else None
            cls.broken = each.broken or ""
        self.version += 1

    def _came(self, cls: EndpointClass) -> None:
        """A replica is there: its model is no longer expected as something else."""
        awaited = self._expected.get(cls.spec.model) if cls.is_local else None
        if awaited is not None and awaited is not cls and not awaited.members:
            cls.start_s, awaited.start_s = awaited.start_s, None
            self._expected[cls.spec.model] = cls
            self.version += 1

    def _class_of(self, spec: EndpointSpec, now_s: float) -> EndpointClass:
        key = class_key(spec)
        cls = self.classes.get(key)
        if cls is None:
            cls = self.classes[key] = EndpointClass(spec, self._limiter(spec, now_s))
            self._sizes = (
                sorted({known.spec.context_tokens for known in self.classes.values()}),
                sorted({known.spec.max_output_tokens for known in self.classes.values()}),
            )
            self._patiences = sorted({each.spec.min_deadline_s for each in self.classes.values()})
            if spec.prior_s is not None:
                _teach(cls, spec.prior_s)
        return cls

    def unregister(self, name: str, now_s: float) -> None:
        """Forget an endpoint; calls in flight there may still settle."""
        state = self.endpoints.pop(name, None)
        if state is None:
            return
        cls = state.cls
        del cls.members[name]
        cls.prefixes.drop(state)
        cls.place(state, now_s)
        if not cls.members or name in self._pins:
            # What it has learned is kept for a member that comes back: the class stays known.
            self.version += 1

    def report(self, loads: Mapping[str, LoadReport], now_s: float) -> None:
        """Take load reports in; unknown names are of endpoints that just left."""
        for name, load in loads.items():
            state = self.endpoints.get(name)
            if state is not None:
                state.report(load)
                state.cls.place(state, now_s)

    def take_out(self, name: str, standing: Standing, why: str, now_s: float) -> None:
        """Take an endpoint out of rotation until it is registered again."""
        state = self.endpoints.get(name)
        if state is not None:
            state.circuit.take_out(standing, why)
            state.cls.place(state, now_s)
            if not state.cls.is_usable():
                self.version += 1

    def configure(self, config: FleetConfig, pricer: Pricer) -> None:
        """Take another fleet.yaml; limits already learned from responses stay."""
        self.config = config
        self.usd_per_hour_waited = float(config.usd_per_hour_waited)
        self.pricer = pricer
        self._breaks = pricer.price_breaks
        self._prices.clear()
        self.version += 1

    def target(self, request: LeaseRequest) -> str:
        """Tier or model name that a request is for."""
        return request.routing.tier or self.config.resolve(request.model)

    def options(self, request: LeaseRequest, target: str, *, free_only: bool) -> tuple[Option, ...]:
        """The classes able to serve a request."""
        pin = request.routing.endpoint
        if pin is not None:
            self._pins.add(pin)
            state = self.endpoints.get(pin)
            classes: Iterable[EndpointClass] = (state.cls,) if state is not None else ()
        else:
            classes = self.classes.values()
        able = [cls for cls in classes if _why_not(cls, request, target) is None]
        options = [self._option(cls, request.input_tokens) for cls in able]
        return tuple(option for option in options if not free_only or option.is_free)

    def able(self, request: LeaseRequest, target: str) -> Iterator[EndpointClass]:
        """The classes of a tier or model that are able to serve a request that is not pinned."""
        for cls in self.classes.values():
            if target in (cls.spec.tier, cls.spec.model) and not _why_not(cls, request, target):
                yield cls

    def fit(self, request: LeaseRequest) -> tuple[int, int, int, int]:
        """Which sizes, deadlines and prices of the pool a request fits: equal for those alike."""
        contexts, outputs = self._sizes
        size = request.input_tokens + request.max_output_tokens
        return (
            bisect_left(contexts, size),
            bisect_left(outputs, request.max_output_tokens),
            bisect_right(self._patiences, request.patience_s),
            bisect_left(self._breaks, request.input_tokens),
        )

    def ruled_out(self, request: LeaseRequest, target: str) -> dict[str, str]:
        """Every endpoint that cannot serve a request, or is not in rotation, with the reason."""
        told: dict[str, str] = {}
        pin = request.routing.endpoint
        for name, state in self.endpoints.items():
            if pin is not None and name != pin:
                told[name] = f"not the asked-for endpoint {pin}"
            else:
                reason = _why_not(state.cls, request, target)
                if reason is None and not state.circuit.is_answering:
                    reason = state.circuit.tell(0.0)
                told[name] = reason or ""
        return told

    def refusal(self, request: LeaseRequest, target: str) -> NoEndpoint:
        """The error that says why nothing can serve a request."""
        pin = request.routing.endpoint
        if pin is not None and pin not in self.endpoints:
            known = ", ".join(sorted(self.endpoints)[:8]) or "none"
            return NoEndpoint(f"no endpoint is named {pin!r}; known: {known}", why={})
        why: dict[str, str] = {}
        for name, state in self.endpoints.items():
            if pin is not None and name != pin:
                why[name] = f"not the asked-for endpoint {pin}"
                continue
            reason = _why_not(state.cls, request, target)
            if reason is None or state.circuit.standing is Standing.UNUSABLE:
                reason = state.circuit.tell(0.0)
            why[name] = reason
        resting = [cls for cls in self._expected.values() if not cls.members]
        why |= {cls.spec.model: _why_not(cls, request, target) or "rests" for cls in resting}
        if not why:
            return NoEndpoint("no endpoint is registered; start the fleet with `agentcloud up`")
        named = [name for name, reason in why.items() if reason != _other(target)]
        if not named:
            specs = [state.spec for state in self.endpoints.values()]
            specs += [cls.spec for cls in resting]
            tiers = sorted({spec.tier for spec in specs})
            models = sorted({spec.model for spec in specs})
            return NoEndpoint(
                f"no endpoint serves {target!r}; map it under `aliases:` of fleet.yaml or ask for "
                f"a tier ({', '.join(tiers)}) or a model ({', '.join(models[:8])})",
                why=why,
            )
        shown = "; ".join(f"{name}: {why[name]}" for name in named[:4])
        more = f"; and {len(named) - 4} more" if len(named) > 4 else ""
        return NoEndpoint(f"no endpoint of {target!r} can serve this call: {shown}{more}", why=why)

    def _option(self, cls: EndpointClass, input_tokens: int) -> Option:
        prices = (0.0, 0.0) if cls.is_local else self._unit_prices(cls.spec, input_tokens)
        if prices is None:
            return Option(cls, 0.0, 0.0, priced=False)
        return Option(cls, *prices, priced=True)

    def _unit_prices(self, spec: EndpointSpec, input_tokens: int) -> tuple[float, float] | None:
        """USD per input and output token for prompts of this length, and of all priced alike."""
        size = max(1, input_tokens)
        model, batch = spec.model, spec.batch
        key = (model, bisect_left(self._breaks, size), batch)
        if key not in self._prices:
            read = self.pricer.worst_case_usd(model, size, 0, cache_ttl=None, batch=batch)
            both = self.pricer.worst_case_usd(model, size, 1000, cache_ttl=None, batch=batch)
            known = read is not None and both is not None
            self._prices[key] = (
                (float(read) / size, float(both - read) / 1000.0)
                if known and read is not None and both is not None
                else None
            )
        return self._prices[key]

    def _limiter(self, spec: EndpointSpec, now_s: float) -> AccountLimits | None:
        # A batch is not under the limits per minute.
        if spec.kind is EndpointKind.LOCAL or spec.account is None or spec.batch:
            return None
        family = spec.family or spec.model
        name = f"{spec.account}/{family}"
        if name not in self.limiters:
            account = self.config.accounts.get(spec.account)
            limits = account.limits if account is not None else {}
            chosen = limits.get(family) or limits.get("*") or Limits()
            self.limiters[name] = AccountLimits(name, chosen, now_s, empty=self.limits_start_empty)
        return self.limiters[name]

    def __repr__(self) -> str:
        return f"<Registry {len(self.endpoints)} endpoints in {len(self.classes)} classes>"


def _teach(cls: EndpointClass, prior_s: float) -> None:
    """Let a class be taken to need so long whatever the size, as one measured call would."""
    cls.predictor.learn(
        running=1,
        prompt_tokens=0.0,
        max_output_tokens=0,
        output_tokens=int(PRIOR_OUTPUT_TOKENS),
        ttft_s=prior_s,
        generation_s=0.0,
        service_s=prior_s,
    )


def _other(target: str) -> str:
    return f"serves another tier and model than {target!r}"


def _why_not(cls: EndpointClass, request: LeaseRequest, target: str) -> str | None:
    """What rules a class out for a request, in words; None: it is able."""
    spec = cls.spec
    if request.routing.endpoint is None and target not in (spec.tier, spec.model):
        return _other(target)
    if not cls.members and cls.start_s is None:
        return f"no replica starts: {cls.broken}" if cls.broken else "not registered"
    if lacking := request.needs - spec.features:
        return f"cannot do {needs_of(lacking)}"
    if request.max_output_tokens > spec.max_output_tokens:
        return (
            f"generates at most {spec.max_output_tokens} tokens, "
            f"max_tokens is {request.max_output_tokens}"
        )
    size = request.input_tokens + request.max_output_tokens
    if size > spec.context_tokens:
        return (
            f"context of {spec.context_tokens} tokens is too small for "
            f"{request.input_tokens} of prompt and {request.max_output_tokens} of answer"
        )
    if spec.min_deadline_s and request.patience_s < spec.min_deadline_s:
        return f"takes only calls that can wait: a deadline of {spec.min_deadline_s:g} s or more"
    if not cls.is_usable():
        return "unusable until its configuration changes"
    return None
