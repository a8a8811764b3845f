"""The catalogue against Anthropic's published prices, and its properties."""

from __future__ import annotations

import pickle
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from anthropic.types import Usage
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.catalog import Catalog, gpu_seconds_usd, load_catalog
from agentcloud.cluster.config_models import HostedModel, Prices
from agentcloud.cluster.contracts import Feature
from agentcloud.cluster.errors import ConfigError

CATALOG = load_catalog()
MODELS = sorted(CATALOG.entries)
TOKENS = st.integers(0, 400_000)


def usage(
    fresh: int = 0, output: int = 0, *, write_5m: int = 0, write_1h: int = 0, read: int = 0,
    **more: Any,
) -> Usage:  # fmt: skip
    return Usage.model_validate(
        {
            "input_tokens": fresh,
            "output_tokens": output,
            "cache_creation_input_tokens": write_5m + write_1h,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": write_5m,
                "ephemeral_1h_input_tokens": write_1h,
            },
            **more,
        }
    )


PUBLISHED = {  # USD per million: input, output, cache write 5 min, 1 h, cache read
    "claude-opus-5-5": ("4", "20", "5", "8", "0.20"),
    "claude-sonnet-5-5": ("2", "10", "2.50", "4", "0.10"),
    "claude-opus-5": ("5", "25", "6.25", "10", "0.50"),
    "claude-haiku-4-5": ("1", "5", "1.25", "2", "0.10"),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_prices_are_charged_to_the_cent(model: str) -> None:
    million = 1_000_000
    parts = [
        usage(fresh=million), usage(output=million), usage(write_5m=million),
        usage(write_1h=million), usage(read=million),
    ]  # fmt: skip
    assert [CATALOG.cost_usd(model, part) for part in parts] == list(map(Decimal, PUBLISHED[model]))


def test_haiku_is_priced_by_the_whole_prompt() -> None:
    at_limit = usage(fresh=40_000, read=60_000, output=1_000)
    above = usage(fresh=40_001, read=60_000, output=1_000)
    assert CATALOG.cost_usd("claude-haiku-5-5", at_limit) == Decimal("0.0051")
    # 40,001 at 0.50, 60,000 read at 0.05, 1,000 out at 2.50.
    assert CATALOG.cost_usd("claude-haiku-5-5", above) == Decimal("0.0255005")


def test_cache_writes_without_a_split_are_five_minute_writes() -> None:
    bare = Usage(input_tokens=10, output_tokens=0, cache_creation_input_tokens=1_000_000)
    assert CATALOG.cost_usd("claude-opus-5", bare) == Decimal("6.25") + Decimal("0.00005")


def test_a_batch_costs_half() -> None:
    whole = CATALOG.cost_usd("claude-sonnet-5-5", usage(1000, 1000))
    assert whole == Decimal("0.012")
    assert CATALOG.cost_usd("claude-sonnet-5-5", usage(1000, 1000), batch=True) == whole / 2
    said = usage(1000, 1000, service_tier="batch")
    assert CATALOG.cost_usd("claude-sonnet-5-5", said) == whole / 2
    assert CATALOG.cost_usd("claude-sonnet-5-5", said, batch=False) == whole


@pytest.mark.parametrize(
    "more",
    [
        {"service_tier": "priority"},
        {"speed": "fast"},
        {"inference_geo": "us"},
        {"server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0}},
    ],
)
def test_what_has_no_known_price_costs_none_not_less(more: dict[str, Any]) -> None:
    assert CATALOG.cost_usd("claude-opus-5-5", usage(1000, 1000, **more)) is None


def test_an_unknown_model_costs_none() -> None:
    assert CATALOG.cost_usd("gpt-oss", usage(1000, 1000)) is None
    assert CATALOG.worst_case_usd("gpt-oss", 1000, 1000) is None


def test_a_dated_snapshot_is_its_model() -> None:
    assert CATALOG.find("claude-haiku-4-5-20251001") is CATALOG.entries["claude-haiku-4-5"]
    assert CATALOG.find("claude-haiku-4-6-20251001") is None


def test_prices_before_they_were_read_are_unknown() -> None:
    spent = usage(1000, 1000)
    assert CATALOG.cost_usd("claude-opus-5", spent, date(2026, 10, 23)) is None
    assert CATALOG.cost_usd("claude-opus-5", spent, date(2026, 10, 24)) == Decimal("0.03")
    assert CATALOG.cost_usd("claude-opus-5", spent) == Decimal("0.03")


def test_the_newest_models_refuse_forced_tools_and_sampling() -> None:
    for model in ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"):
        refused = {Feature.FORCED_TOOLS, Feature.SAMPLING, Feature.PREFILL}
        assert not refused & CATALOG.entries[model].features
    assert Feature.THINKING_DISABLED not in CATALOG.entries["claude-opus-5-5"].features
    assert Feature.SAMPLING in CATALOG.entries["claude-haiku-4-5"].features
    assert CATALOG.entries["claude-haiku-4-5"].min_cache_tokens == 4096


def override(**given: Any) -> Catalog:
    return CATALOG.with_overrides({"claude-opus-5-5": HostedModel(account="main", **given)})


def test_fleet_yaml_overrides_prices_and_keeps_cache_ratios() -> None:
    catalog = override(prices=Prices(input=Decimal(2), output=Decimal(10)))
    spent = usage(write_5m=1_000_000, read=1_000_000)
    assert catalog.cost_usd("claude-opus-5-5", spent) == Decimal("2.50") + Decimal("0.10")
    assert catalog.cost_usd("claude-opus-5-5", spent, date(2020, 1, 1)) == Decimal("2.60")
    # The catalogue that was overridden is as it was.
    assert CATALOG.cost_usd("claude-opus-5-5", usage(fresh=1_000_000)) == 4


def test_fleet_yaml_overrides_sizes_and_keeps_the_rest() -> None:
    entry = override(context_tokens=200_000, tier="best").entries["claude-opus-5-5"]
    assert (entry.context_tokens, entry.tier, entry.max_output_tokens) == (200_000, "best", 128_000)


def test_a_model_of_ones_own_server_needs_sizes_and_may_be_unpriced() -> None:
    with pytest.raises(ConfigError, match=r"hosted\.my-llama.*context_tokens"):
        CATALOG.with_overrides({"my-llama": HostedModel(account="lab")})
    sizes: dict[str, Any] = {"account": "lab", "context_tokens": 8192, "max_output_tokens": 2048}
    unpriced = CATALOG.with_overrides({"my-llama": HostedModel(**sizes)})
    assert unpriced.cost_usd("my-llama", usage(10, 10)) is None
    prices = Prices(input=Decimal("0.2"), output=Decimal("0.4"))
    priced = CATALOG.with_overrides({"my-llama": HostedModel(**sizes, prices=prices)})
    assert priced.cost_usd("my-llama", usage(read=1_000_000)) == Decimal("0.2")


def test_gpu_time_has_a_cost_only_where_it_has_a_price() -> None:
    assert gpu_seconds_usd(1800, 4, Decimal("2.50")) == Decimal(5)
    assert gpu_seconds_usd(1800, 4, None) is None
    assert gpu_seconds_usd(0.1, 1, Decimal(36)) == Decimal("0.001")


def test_it_travels_to_other_processes() -> None:
    there: Catalog = pickle.loads(pickle.dumps(CATALOG))
    assert there.entries == CATALOG.entries


@given(st.sampled_from(MODELS), TOKENS, TOKENS, TOKENS, TOKENS, TOKENS)
def test_no_usage_costs_more_than_the_worst_case_of_its_tokens(
    model: str, fresh: int, output: int, write_5m: int, write_1h: int, read: int
) -> None:
    spent = usage(fresh, output, write_5m=write_5m, write_1h=write_1h, read=read)
    cost = CATALOG.cost_usd(model, spent)
    worst = CATALOG.worst_case_usd(model, fresh + write_5m + write_1h + read, output)
    assert cost is not None
    assert worst is not None
    assert 0 <= cost <= worst


@given(st.sampled_from(MODELS), TOKENS, TOKENS, TOKENS)
def test_without_cache_marks_the_worst_case_is_tighter_and_still_holds(
    model: str, fresh: int, output: int, read: int
) -> None:
    cost = CATALOG.cost_usd(model, usage(fresh, output, read=read))
    worst = CATALOG.worst_case_usd(model, fresh + read, output, cache_ttl=None)
    dearest = CATALOG.worst_case_usd(model, fresh + read, output)
    assert cost is not None
    assert worst is not None
    assert dearest is not None
    assert cost <= worst <= dearest


@given(st.sampled_from(MODELS), st.lists(TOKENS, min_size=5, max_size=5), st.integers(0, 4), TOKENS)
def test_more_tokens_never_cost_less(model: str, counts: list[int], which: int, more: int) -> None:
    def cost(c: list[int]) -> Decimal:
        spent = usage(c[0], c[1], write_5m=c[2], write_1h=c[3], read=c[4])
        usd = CATALOG.cost_usd(model, spent)
        assert usd is not None
        return usd

    greater = [count + more * (index == which) for index, count in enumerate(counts)]
    assert cost(counts) <= cost(greater)


@given(st.sampled_from(MODELS), TOKENS, TOKENS, TOKENS, TOKENS)
def test_the_worst_case_grows_with_its_tokens(
    model: str, prompt: int, output: int, more_prompt: int, more_output: int
) -> None:
    less = CATALOG.worst_case_usd(model, prompt, output)
    more = CATALOG.worst_case_usd(model, prompt + more_prompt, output + more_output)
    assert less is not None
    assert more is not None
    assert less <= more
