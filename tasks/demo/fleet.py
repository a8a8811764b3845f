"""The demo's fleet: the embedded model on vLLM, a hosted model, a sandbox if there is no key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

#: What the sandbox accepts; it is no secret.
SANDBOX_KEY = "sandbox-demo"
SANDBOX_KEY_ENV = "AGENTCLOUD_SANDBOX_KEY"
ACCOUNT = "anthropic"
LOCAL_MODEL = "triage-small"
HOSTED_MODEL = "claude-haiku-5-5"
#: Answers in the hosted model's place when there is no key.
SANDBOX_MODEL = "embedded:triage-large"


def has_key() -> bool:
    """Whether the demo can call Anthropic."""
    return bool(os.environ.get("ANTHROPIC_API_KEY", "").strip())


def write_demo_fleet(path: Path, sandbox_url: str | None) -> None:
    """Write the demo's fleet.yaml.

    Args:
        path: the file.
        sandbox_url: the sandbox that stands in for Anthropic; None: Anthropic itself.
    """
    account: dict[str, Any] = {"api_key_env": "ANTHROPIC_API_KEY"}
    if sandbox_url is not None:
        os.environ[SANDBOX_KEY_ENV] = SANDBOX_KEY
        account = {"base_url": sandbox_url, "api_key_env": SANDBOX_KEY_ENV}
    fleet = {
        "models": {
            LOCAL_MODEL: {
                "path": f"embedded:{LOCAL_MODEL}",
                "tier": "small",
                "context_tokens": 1024,
                "kv_cache_gib": 0.25,
                "max_concurrency": 128,
                "usd_per_gpu_hour": "0.04",
            }
        },
        "accounts": {ACCOUNT: account},
        "hosted": {HOSTED_MODEL: {"account": ACCOUNT, "tier": "large"}},
    }
    path.write_text(yaml.safe_dump(fleet, sort_keys=False))
