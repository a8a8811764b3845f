"""`replicas:` of fleet.yaml: a number or bounds; anything else is one clear line."""

from __future__ import annotations

from typing import Any

import pytest

from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.config_models import Replicas
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.model_state import ModelState


def parsed(replicas: Any, **more: Any) -> FleetConfig:
    return parse_fleet({"models": {"m": {"path": "x", "replicas": replicas, **more}}})


@pytest.mark.parametrize(
    ("given", "least", "most", "shown"),
    [(2, 2, 2, "2"), ({"min": 0, "max": 4}, 0, 4, "0 to 4"), ({"max": 3}, 0, 3, "0 to 3")],
)
def test_a_number_or_bounds(given: Any, least: int, most: int, shown: str) -> None:
    replicas = parsed(given).models["m"].replicas
    assert (replicas.min, replicas.max, str(replicas)) == (least, most, shown)
    assert replicas.is_fixed is (least == most)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (0, "models.m.replicas: must be 1 or more; {min: 0, max: 1} lets a model rest (given: 0)"),
        ("many", "must be a number, or bounds such as {min: 0, max: 4} (given: 'many')"),
        (True, "must be a number, or bounds such as {min: 0, max: 4} (given: True)"),
        ({"min": 3, "max": 1}, "models.m.replicas: min 3 is more than max 1"),
        ({"min": -1, "max": 1}, "models.m.replicas.min: input should be greater than or equal to"),
        ({"min": 0, "max": 0}, "models.m.replicas.max: input should be greater than 0 (given: 0)"),
        ({"max": 1, "mim": 0}, "unknown key 'models.m.replicas.mim'; did you mean 'min'?"),
    ],
)
def test_anything_else_is_one_clear_line(given: Any, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(given)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def model(**keys: Any) -> ModelState:
    return ModelState(parsed(1, **keys).models["m"])


def test_what_an_engine_was_not_started_with_replaces_nothing() -> None:
    state = model()
    changed = parsed({"min": 0, "max": 3}, tier="large", usd_per_gpu_hour="1").models["m"]
    assert not state.is_outdated(changed)
    assert state.take(changed) == "replicas 1 -> 0 to 3"
    assert (state.least, state.most) == (0, 3)
    assert state.take(parsed(Replicas(max=3), tier="other").models["m"]) == "tier or price changed"


def test_settings_that_never_served_give_way_to_those_that_did() -> None:
    state = model()
    good = state.settings
    assert not state.go_back(), "there are none before them"
    assert state.served(good, None, took_s=10.0)
    bad = parsed(1, max_concurrency=7).models["m"]
    assert state.take(bad) == "replicas are replaced (max_concurrency)"
    assert state.is_outdated(good)
    assert not state.has_served(bad)
    assert state.go_back()
    assert state.settings == good


def test_a_number_set_by_hand_holds_until_the_file_changes() -> None:
    state = model()
    state.pin(5)
    assert (state.least, state.most, state.target.replicas) == (5, 5, 5)
    state.take(parsed(2).models["m"])
    assert (state.least, state.most) == (2, 2)
