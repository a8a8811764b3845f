"""fleet.yaml and the environment -> validated settings.

Every key is documented where it is defined. An unknown key, a bad value or a missing secret is a
`ConfigError` that names file, key and remedy.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import (
    BaseModel,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from agentcloud.cluster.chains import chains
from agentcloud.cluster.config_models import (
    Account,
    HostedModel,
    Limits,
    LocalModel,
    Prices,
    Replicas,
    Section,
    Usd,
)
from agentcloud.cluster.config_rules import (
    Alarming,
    Batching,
    Caching,
    Health,
    Hedge,
    Retry,
    Scaling,
)
from agentcloud.cluster.contracts import Policy
from agentcloud.cluster.errors import ConfigError


class FleetConfig(Section):
    """All of fleet.yaml.

    Attributes:
        models: local models by name.
        accounts: accounts at Messages API servers by name.
        hosted: hosted models by the API's model name.
        aliases: model names (globs) -> tier or model, for unchanged programs.
        policy: `cost`, `balanced` or `latency`.
        fleet_budget_usd: cap over everything; null: none.
        fallbacks: tier or model -> where its calls go when nothing of it can serve them: all is
            ruled out, down, or has failed this very call. In this order, and on from there.
        retry: the transport retry loop.
        hedge: second sends of slow idempotent calls.
        health: when a replica counts as dead.
        batch: calls that can wait, sent by Message Batches.
        scaling: when models get more or fewer replicas.
        cache_marks: hosted calls get `cache_control` marks where their prompts begin alike and
            that pays (cache_marks.py); a caller's own marks stay.
        cache: the response cache: calls at temperature 0, and those that ask for it by
            `Routing(cache=True)`, are answered once; null: there is none.
        alarms: when a change for the worse raises an alarm.
        store: database of budgets and paid leases, as SQLAlchemy's URL; null: a file of SQLite in
            the state folder of the machine that the scheduler runs on (the cluster's head).
        lease_timeout_s: an unsettled lease expires after its send's timeout plus this.
        usd_per_hour_waited: what an hour of one call's time is worth, USD: the rate at which a
            choice without a deadline trades waiting against paying. `cost` takes a twentieth of
            it, `latency` a hundred times.
        weights: share of what is scarce, by budget scope (`tenant:a`, `job:nightly`); 1 where
            unnamed. Tenants share first, then a tenant's jobs.
        max_waiting: calls that may wait at the scheduler; more are held back in their workers.
    """

    models: dict[str, LocalModel] = Field(default_factory=dict)
    accounts: dict[str, Account] = Field(default_factory=dict)
    hosted: dict[str, HostedModel] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    fallbacks: dict[str, list[str]] = Field(default_factory=dict)
    policy: Policy = Policy.BALANCED
    fleet_budget_usd: Usd | None = None
    retry: Retry = Retry()
    hedge: Hedge = Hedge()
    health: Health = Health()
    batch: Batching = Batching()
    scaling: Scaling = Scaling()
    cache_marks: bool = True
    cache: Caching | None = None
    alarms: Alarming = Alarming()
    store: str | None = None
    lease_timeout_s: PositiveFloat = 30.0
    usd_per_hour_waited: Usd = Decimal(1)
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    max_waiting: PositiveInt = 200_000

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        if not self.models and not self.hosted:
            raise ValueError("no models: name at least one under `models:` or `hosted:`")
        for name, hosted in self.hosted.items():
            if hosted.account not in self.accounts:
                known = ", ".join(self.accounts) or "none"
                raise ValueError(
                    f"hosted.{name}.account: no account {hosted.account!r} (known: {known})"
                )
        if both := set(self.models) & set(self.hosted):
            raise ValueError(f"{', '.join(sorted(both))}: named under both `models:` and `hosted:`")
        chains(self.fallbacks)
        return self

    def resolve(self, model: str) -> str:
        """Map a request's model name through `aliases:`; a name without an alias stays itself."""
        if model in self.models or model in self.hosted:
            return model
        for pattern, target in self.aliases.items():
            if fnmatch.fnmatchcase(model, pattern):
                return target
        return model


def state_dir() -> Path:
    """This user's folder for what outlives a process: `$XDG_STATE_HOME/agentcloud`."""
    root = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(root).expanduser() / "agentcloud"


def load_fleet(path: Path) -> FleetConfig:
    """Read and validate a fleet.yaml.

    Raises:
        ConfigError: the file is missing, not YAML, or holds an unknown key or a bad value.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"cannot read it ({error.strerror}); give another with --fleet", where=str(path)
        ) from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"is not YAML ({getattr(error, 'problem', error)})", where=f"{path}{line}"
        ) from None
    if not isinstance(data, dict):
        raise ConfigError("holds no keys; see the README's example", where=str(path))
    return parse_fleet(data, where=str(path))


def parse_fleet(data: dict[str, Any], *, where: str = "fleet.yaml") -> FleetConfig:
    """Validate the content of a fleet.yaml.

    Raises:
        ConfigError: naming the first wrong key.
    """
    try:
        return FleetConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_first_line(error), where=where) from None


def _first_line(error: ValidationError) -> str:
    """The first problem as one line: key, what is wrong, what to write instead."""
    first = error.errors(include_url=False)[0]
    location = [
        str(part) for part in first["loc"] if not str(part).startswith(("literal[", "constrained"))
    ]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    given = first.get("input")
    shown = "" if isinstance(given, dict) or given is None else f" (given: {given!r})"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}{more}"


def _known_keys(parents: list[str]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "models": LocalModel,
        "accounts": Account,
        "hosted": HostedModel,
        "retry": Retry,
        "hedge": Hedge,
        "health": Health,
        "batch": Batching,
        "replicas": Replicas,
        "scaling": Scaling,
        "alarms": Alarming,
        "cache": Caching,
        "limits": Limits,
        "prices": Prices,
    }
    for part in reversed(parents):
        if part in sections:
            return sorted(sections[part].model_fields)
    return sorted(FleetConfig.model_fields)
