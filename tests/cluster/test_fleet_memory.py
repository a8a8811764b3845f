"""What the fleet remembers is what it was told, for its own actor, until it is stopped."""

from __future__ import annotations

from pathlib import Path

from agentcloud.cluster.config import FleetConfig, load_fleet, parse_fleet
from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.fleet_memory import FleetMemory, Memory, ModelMemory
from agentcloud.cluster.model_state import ModelState

MODEL = LocalModel.model_validate({"path": "/m", "replicas": {"min": 0, "max": 3}})


def memory_of(config: FleetConfig, **models: ModelMemory) -> FleetMemory:
    return FleetMemory(actor="one", config=config, where="/home/me/fleet.yaml", models=models)


def test_what_is_kept_comes_back_as_it_was() -> None:
    config = parse_fleet(
        {
            "models": {"m": {**MODEL.model_dump(), "engine_args": {"seed": 1, "x": [1.5, None]}}},
            "accounts": {"a": {"api_key_file": "/keys/a", "limits": {"*": {}}}},
            "hosted": {"claude-haiku-5-5": {"account": "a", "prices": {"input": "1", "output": 2}}},
            "weights": {"tenant:a": float("inf")},
            "fleet_budget_usd": "0.10",
        }
    )
    kept: dict[str, str] = {}
    for whole in (config, load_fleet(Path(__file__).parents[2] / "fleet.yaml")):
        models = {name: ModelMemory(settings=each) for name, each in whole.models.items()}
        Memory(kept).keep(memory_of(whole, **models))
        assert Memory(kept).recall("one") == memory_of(whole, **models)


def test_another_fleets_memory_is_not_taken_over() -> None:
    kept: dict[str, str] = {}
    Memory(kept).keep(memory_of(parse_fleet({"models": {"m": MODEL}})))
    assert Memory(kept).recall("another") is None


def test_replicas_come_and_go_one_by_one_and_a_stop_clears_them_all() -> None:
    kept: dict[str, str] = {}
    memory = Memory(kept)
    memory.keep(memory_of(parse_fleet({"models": {"m": MODEL}})))
    other = MODEL.model_copy(update={"dtype": "float32"})
    for name, settings in (("replica:m:0", MODEL), ("replica:m:1", MODEL), ("replica:m:1", other)):
        memory.keep_replica(name, settings)
    assert Memory(kept).replicas() == {"replica:m:0": MODEL, "replica:m:1": other}
    memory.forget_replica("replica:m:0")
    memory.forget_replica("replica:m:0")
    assert list(memory.replicas()) == ["replica:m:1"]
    assert repr(memory) == "<Memory fleet, replica:m:1>"
    memory.clear()
    assert not kept
    assert memory.recall("one") is None


def test_a_model_is_recalled_with_what_was_set_and_what_was_proven() -> None:
    model = ModelState(MODEL)
    model.served(MODEL, None, 12.0)
    changed = MODEL.model_copy(update={"dtype": "float32"})
    model.take(changed)
    model.pin(2)
    again = ModelState.recalled(model.remembered())
    assert (again.least, again.most, again.target) == (2, 2, model.target)
    assert again.is_outdated(MODEL)
    assert not again.is_outdated(changed)
    assert again.go_back()
    assert again.settings == MODEL
