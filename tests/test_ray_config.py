"""ray_config.yaml is a cluster file that `ray up` takes, with token authentication on."""

from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent


def _config() -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "ray_config.yaml").read_text())
    assert isinstance(config, dict)
    return config


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(_config()))


def test_every_start_command_switches_token_authentication_on() -> None:
    config = _config()
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray" in c or "RAY_AUTH_MODE=token RAY" in c for c in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_no_key_travels() -> None:
    text = (ROOT / "ray_config.yaml").read_text()
    assert "API_KEY" not in text
    assert "sk-ant" not in text
