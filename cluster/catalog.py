"""Hosted models: what they can do, how much they hold, and what a usage costs.

Prices are dated data (`data/prices.yaml`), extended by fleet.yaml. A usage is priced by the model
that served it. What the catalogue cannot price (an unknown model, a service tier, region or tool
whose price it does not hold) costs None, never zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from agentcloud.cluster.config_models import HostedModel
from agentcloud.cluster.config_models import Prices as PriceOverride
from agentcloud.cluster.contracts import Feature
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.prices import CacheTtl, PriceList, PriceTier, gpu_seconds_usd, is_unpriced

if TYPE_CHECKING:
    from anthropic.types import Usage

__all__ = ["Catalog", "HostedEntry", "gpu_seconds_usd", "load_catalog"]

#: Model ids may carry the day of their snapshot: claude-haiku-4-5-20251001.
_SNAPSHOT = re.compile(r"-20\d{6}$")
#: What a server of the Messages API that is not Anthropic's can be trusted to know.
_OTHER_SERVER_FEATURES = frozenset(
    {Feature.TOOLS, Feature.FORCED_TOOLS, Feature.JSON_SCHEMA, Feature.SAMPLING}
)


@dataclass(frozen=True, slots=True)
class HostedEntry:
    """A hosted model.

    Attributes:
        tier: `small`, `medium` or `large`.
        family: models whose rate limits pool within an account.
        context_tokens: prompt and answer together.
        max_output_tokens: the most generated in one answer.
        min_cache_tokens: shorter prompts are silently not cached.
        prices: oldest first; empty: unpriced.
    """

    name: str
    tier: str
    family: str
    context_tokens: int
    max_output_tokens: int
    min_cache_tokens: int
    features: frozenset[Feature]
    prices: tuple[PriceList, ...] = ()

    def price_list(self, at: date | None) -> PriceList | None:
        """The list in force on a day; None for `at`: the newest. None: none was read by then."""
        dated = [prices for prices in self.prices if at is None or prices.as_of <= at]
        return dated[-1] if dated else None


class Catalog:
    """Hosted models by name."""

    def __init__(self, entries: Iterable[HostedEntry], *, batch_discount: Decimal) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._batch_discount = batch_discount

    def __repr__(self) -> str:
        return f"Catalog({', '.join(self._entries)})"

    @property
    def entries(self) -> Mapping[str, HostedEntry]:
        """Every model by its name."""
        return MappingProxyType(self._entries)

    @property
    def price_breaks(self) -> tuple[int, ...]:
        """Prompt lengths, tokens, above which some model's newest prices change."""
        newest = filter(None, (entry.price_list(None) for entry in self._entries.values()))
        ends = {tier.up_to_prompt_tokens for prices in newest for tier in prices.tiers}
        return tuple(sorted(end for end in ends if end is not None))

    def find(self, model: str) -> HostedEntry | None:
        """A model by its name or by the name of a dated snapshot of it."""
        return self._entries.get(model) or self._entries.get(_SNAPSHOT.sub("", model))

    def cost_usd(
        self, model: str, usage: Usage, at: date | None = None, *, batch: bool | None = None
    ) -> Decimal | None:
        """What an answer cost.

        Args:
            model: the model that served (`message.model`), not the one that was asked for.
            usage: of the answer.
            at: the day it was served; None: by the newest prices.
            batch: it came by a Message Batch; None: as the usage says.

        Returns:
            USD, or None where the catalogue holds no price for something in it.
        """
        entry = self.find(model)
        prices = entry.price_list(at) if entry else None
        if prices is None or is_unpriced(usage):
            return None
        cost = prices.cost_usd(usage)
        if batch is None:
            batch = usage.service_tier == "batch"
        return cost * self._batch_discount if batch else cost

    def saved_usd(
        self, model: str, usage: Usage, at: date | None = None, *, batch: bool | None = None
    ) -> Decimal | None:
        """What the model's cache saved on an answer; as `cost_usd`, below zero: it cost more."""
        entry = self.find(model)
        prices = entry.price_list(at) if entry else None
        if prices is None or is_unpriced(usage):
            return None
        if batch is None:
            batch = usage.service_tier == "batch"
        saved = prices.saved_usd(usage)
        return saved * self._batch_discount if batch else saved

    def worst_case_usd(
        self,
        model: str,
        input_tokens: int,
        max_output_tokens: int,
        *,
        at: date | None = None,
        cache_ttl: CacheTtl | None = "1h",
        batch: bool = False,
    ) -> Decimal | None:
        """The most that a request can cost: what a budget must hold before it is sent.

        Args:
            model: the model to be asked.
            input_tokens: the whole prompt, counted or estimated from above.
            max_output_tokens: the request's `max_tokens`.
            at: the day; None: by the newest prices.
            cache_ttl: the longest `cache_control` in the request: its writes cost most; None:
                there is no mark, so nothing is written.
            batch: it is sent by a Message Batch.

        Returns:
            USD, or None where the model has no price.
        """
        entry = self.find(model)
        prices = entry.price_list(at) if entry else None
        if prices is None:
            return None
        worst = prices.worst_case_usd(input_tokens, max_output_tokens, cache_ttl)
        return worst * self._batch_discount if batch else worst

    def with_overrides(self, hosted: Mapping[str, HostedModel]) -> Catalog:
        """This catalogue with what fleet.yaml's `hosted:` says of models known or new.

        Prices given there replace the model's whole history. Cache prices left out keep their
        ratio to the input price; for a model that is not catalogued they equal the input price.

        Raises:
            ConfigError: a model that is not catalogued lacks its sizes.
        """
        entries = dict(self._entries)
        for name, model in hosted.items():
            entries[name] = _override(self.find(name), name, model)
        return Catalog(entries.values(), batch_discount=self._batch_discount)


@cache
def load_catalog() -> Catalog:
    """The catalogue that ships with the package."""
    text = resources.files("agentcloud.cluster.data").joinpath("prices.yaml").read_text()
    # As text, so that 0.10 becomes the Decimal 0.10 and never passes through a float.
    data = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - the safest loader: text only
    return Catalog(
        (_entry(name, raw) for name, raw in data["models"].items()),
        batch_discount=Decimal(data["batch_discount"]),
    )


def _entry(name: str, raw: Mapping[str, Any]) -> HostedEntry:
    return HostedEntry(
        name=name,
        tier=raw["tier"],
        family=raw["family"],
        context_tokens=int(raw["context_tokens"]),
        max_output_tokens=int(raw["max_output_tokens"]),
        min_cache_tokens=int(raw["min_cache_tokens"]),
        features=frozenset(Feature(feature) for feature in raw["features"]),
        prices=tuple(
            PriceList(date.fromisoformat(prices["as_of"]), tuple(map(_tier, prices["tiers"])))
            for prices in raw["prices"]
        ),
    )


def _tier(raw: Mapping[str, str]) -> PriceTier:
    end = raw.get("up_to_prompt_tokens")
    return PriceTier(
        **{key: Decimal(value) for key, value in raw.items() if key != "up_to_prompt_tokens"},
        up_to_prompt_tokens=None if end is None else int(end),
    )


def _override(known: HostedEntry | None, name: str, model: HostedModel) -> HostedEntry:
    if known is None:
        if model.context_tokens is None or model.max_output_tokens is None:
            raise ConfigError(
                "is not in the catalogue: give its context_tokens and max_output_tokens",
                where=f"fleet.yaml: hosted.{name}",
            )
        known = HostedEntry(
            name=name,
            tier="large",
            family=name,
            context_tokens=model.context_tokens,
            max_output_tokens=model.max_output_tokens,
            min_cache_tokens=0,
            features=_OTHER_SERVER_FEATURES,
        )
    return replace(
        known,
        name=name,
        tier=model.tier or known.tier,
        context_tokens=model.context_tokens or known.context_tokens,
        max_output_tokens=model.max_output_tokens or known.max_output_tokens,
        prices=(_override_prices(known, model.prices),) if model.prices else known.prices,
    )


def _override_prices(known: HostedEntry, prices: PriceOverride) -> PriceList:
    newest = known.price_list(None)
    base = newest.tiers[0] if newest else None

    def scaled(given: Decimal | None, attribute: str) -> Decimal:
        if given is not None:
            return given
        if base is None or not base.input:
            return prices.input
        listed: Decimal = getattr(base, attribute)
        return prices.input * listed / base.input

    tier = PriceTier(
        input=prices.input,
        output=prices.output,
        cache_write_5m=scaled(prices.cache_write_5m, "cache_write_5m"),
        cache_write_1h=scaled(prices.cache_write_1h, "cache_write_1h"),
        cache_read=scaled(prices.cache_read, "cache_read"),
    )
    return PriceList(date.min, (tier,))
