"""Pure: price lists and what a usage costs by them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from anthropic.types import Usage

_MTOK = Decimal(1_000_000)
_SECONDS_PER_HOUR = Decimal(3600)

CacheTtl = Literal["5m", "1h"]


@dataclass(frozen=True, slots=True)
class PriceTier:
    """USD per million tokens, for prompts up to a length.

    Attributes:
        up_to_prompt_tokens: the longest prompt it holds for; None: no end.
    """

    input: Decimal
    output: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal
    cache_read: Decimal
    up_to_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices as they were read on a day; tiers in order of prompt length."""

    as_of: date
    tiers: tuple[PriceTier, ...]

    def tier(self, prompt_tokens: int) -> PriceTier:
        """The tier that prices every token of a request with so long a prompt."""
        for tier in self.tiers:
            if tier.up_to_prompt_tokens is None or prompt_tokens <= tier.up_to_prompt_tokens:
                return tier
        return self.tiers[-1]

    def cost_usd(self, usage: Usage) -> Decimal:
        """What a usage costs by this list."""
        written_5m, written_1h = _cache_writes(usage)
        read = usage.cache_read_input_tokens or 0
        tier = self.tier(usage.input_tokens + written_5m + written_1h + read)
        return (
            usage.input_tokens * tier.input
            + written_5m * tier.cache_write_5m
            + written_1h * tier.cache_write_1h
            + read * tier.cache_read
            + usage.output_tokens * tier.output
        ) / _MTOK

    def saved_usd(self, usage: Usage) -> Decimal:
        """What the cache saved: the whole prompt as plain input, less what it cost.

        Below zero where more was written than read.
        """
        written_5m, written_1h = _cache_writes(usage)
        read = usage.cache_read_input_tokens or 0
        tier = self.tier(usage.input_tokens + written_5m + written_1h + read)
        return (
            read * (tier.input - tier.cache_read)
            - written_5m * (tier.cache_write_5m - tier.input)
            - written_1h * (tier.cache_write_1h - tier.input)
        ) / _MTOK

    def worst_case_usd(
        self, input_tokens: int, max_output_tokens: int, cache_ttl: CacheTtl | None
    ) -> Decimal:
        """The most that a prompt of at most so many tokens and its answer can cost."""
        reachable = self.tiers[: self.tiers.index(self.tier(input_tokens)) + 1]
        worst = max(
            input_tokens * _dearest_input(tier, cache_ttl) + max_output_tokens * tier.output
            for tier in reachable
        )
        return worst / _MTOK


def gpu_seconds_usd(seconds: float, gpus: int, usd_per_gpu_hour: Decimal | None) -> Decimal | None:
    """What a local endpoint's time cost: None where its GPUs have no price.

    Args:
        seconds: of all its GPUs at once.
        gpus: GPUs of the replica.
        usd_per_gpu_hour: price of one of them.
    """
    if usd_per_gpu_hour is None:
        return None
    return Decimal(str(seconds)) * gpus * usd_per_gpu_hour / _SECONDS_PER_HOUR


def is_unpriced(usage: Usage) -> bool:
    """Whether something in the usage has a price that the catalogue does not hold."""
    tools = usage.server_tool_use
    return (
        usage.service_tier == "priority"
        or usage.speed == "fast"
        or usage.inference_geo not in (None, "", "global", "not_available")
        or (tools is not None and bool(tools.web_search_requests))
    )


def _cache_writes(usage: Usage) -> tuple[int, int]:
    """Tokens written for 5 minutes and for 1 hour; without a split all count as 5 minutes."""
    total = usage.cache_creation_input_tokens or 0
    if usage.cache_creation is None:
        return total, 0
    hour = usage.cache_creation.ephemeral_1h_input_tokens
    return max(total - hour, usage.cache_creation.ephemeral_5m_input_tokens), hour


def _dearest_input(tier: PriceTier, cache_ttl: CacheTtl | None) -> Decimal:
    prices = [tier.input, tier.cache_read]
    if cache_ttl is not None:
        prices.append(tier.cache_write_5m)
    if cache_ttl == "1h":
        prices.append(tier.cache_write_1h)
    return max(prices)
