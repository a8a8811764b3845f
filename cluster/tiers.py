"""Pure: the tiers of a fleet in the order of their price, and what serves a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from agentcloud.cluster.catalog import Catalog
from agentcloud.cluster.config import FleetConfig

#: The call that hosted models are compared by: a short prompt, a short answer.
_INPUT_TOKENS, _OUTPUT_TOKENS = 1000, 250


@dataclass(frozen=True, slots=True)
class FleetTiers:
    """What a cascade must know of a fleet.

    Attributes:
        ordered: the tiers, cheapest first. A tier costs what its cheapest model does: local ones
            before hosted ones, because their GPUs are paid for anyway; among local ones by GPU
            hour times tensor parallelism, among hosted ones by the price of a short call, those
            without a price last; equals in the order of fleet.yaml.
        models: tier or model -> the models that serve it.
        local: tiers and models that a local model serves.
        config: fleet.yaml, for its aliases.
    """

    ordered: tuple[str, ...]
    models: Mapping[str, frozenset[str]]
    local: frozenset[str]
    config: FleetConfig

    @classmethod
    def of(cls, config: FleetConfig, catalog: Catalog) -> FleetTiers:
        """Read them off fleet.yaml; `catalog` holds its hosted models."""
        rank: dict[str, tuple[int, Decimal]] = {}
        models: dict[str, set[str]] = {}
        local: set[str] = set()

        def add(model: str, tier: str, price: tuple[int, Decimal]) -> None:
            rank[tier] = min(rank.get(tier, price), price)
            models.setdefault(tier, set()).add(model)
            models.setdefault(model, set()).add(model)

        for name, model in config.models.items():
            degree = 1 if model.tensor_parallel == "auto" else model.tensor_parallel
            add(name, model.tier, (0, (model.usd_per_gpu_hour or Decimal(0)) * degree))
            local |= {name, model.tier}
        for name in config.hosted:
            usd = catalog.worst_case_usd(name, _INPUT_TOKENS, _OUTPUT_TOKENS, cache_ttl=None)
            priced = (2, Decimal(0)) if usd is None else (1, usd)
            add(name, catalog.entries[name].tier, priced)
        return cls(
            ordered=tuple(sorted(rank, key=lambda tier: rank[tier])),
            models={name: frozenset(each) for name, each in models.items()},
            local=frozenset(local),
            config=config,
        )

    def models_of(self, name: str) -> frozenset[str]:
        """The models behind a tier, model or alias; empty: there is no such name."""
        return self.models.get(self.config.resolve(name), frozenset())

    def has_local(self, name: str) -> bool:
        """Whether a local model is among them: only those tell log-probabilities."""
        return self.config.resolve(name) in self.local
