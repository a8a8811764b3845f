"""fleet.yaml and the environment -> validated settings. The sole reader of both.

Every key is documented where it is defined. An unknown key, a bad value or a missing secret is a
`ConfigError` that names file, key and remedy.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)

from agentcloud.cluster.chains import chains
from agentcloud.cluster.contracts import Policy
from agentcloud.cluster.errors import ConfigError

Usd = Annotated[Decimal, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Replicas(_Section):
    """How many replicas of a model run: a number, or bounds between which the load decides.

    Attributes:
        min: as many run always; 0 lets the model rest, and a request that needs it starts one.
        max: never more than this.
    """

    min: NonNegativeInt = 0
    max: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, given: Any) -> Any:
        if isinstance(given, Mapping | Replicas):
            return given
        if not isinstance(given, int) or isinstance(given, bool):
            raise ValueError("must be a number, or bounds such as {min: 0, max: 4}")
        if given < 1:
            raise ValueError("must be 1 or more; {min: 0, max: 1} lets a model rest")
        return {"min": given, "max": given}

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self

    @property
    def is_fixed(self) -> bool:
        """Whether the load decides nothing."""
        return self.min == self.max

    def __str__(self) -> str:
        return str(self.max) if self.is_fixed else f"{self.min} to {self.max}"


class LocalModel(_Section):
    """A model served by vLLM replicas on the cluster (`models:` of fleet.yaml).

    Attributes:
        path: model folder (config.json, weights, tokenizer), or `embedded:NAME`.
        tier: the tier it serves.
        replicas: how many replicas run; `{min: 0, max: 4}` lets the load decide (`scaling:`), and
            may wait for nodes that Ray's autoscaler adds.
        gpu: kind from the GPU catalogue, e.g. `H100-80G`; null runs on the CPU.
        tensor_parallel: GPUs (on CPU: processes) a replica is split over; `auto` takes the
            smallest degree that fits (plan.py).
        pipeline_parallel: stages over nodes, for models larger than one node.
        dtype: as vLLM's `--dtype`.
        context_tokens: prompt and answer together; null: the model's own limit.
        max_output_tokens: the most generated in one answer; null: the context.
        max_concurrency: calls a replica takes at once; more wait at the scheduler.
        kv_cache_gib: on CPU, memory for the KV cache of one replica.
        cpus: CPU cores that Ray reserves for a replica (0: none).
        resources: further Ray resources that a replica takes, by name: those of the node types of
            ray_config.yaml that it may run on.
        gpus_per_node: GPUs of a node, to plan with while the cluster has none yet.
        usd_per_gpu_hour: price of one GPU hour; null: not priced.
        kv_events: replicas tell the scheduler what their KV caches hold, so that calls go where
            their prompts' beginnings are; false: it is guessed from what they were sent.
        tool_parser: vLLM's tool-call parser (`hermes`, `llama3_json`, ...).
        engine_args: further vLLM engine arguments by their Python names.
        env: environment variables of the replica's processes.
    """

    path: str
    tier: str = "small"
    replicas: Replicas = Replicas(min=1, max=1)
    gpu: str | None = None
    tensor_parallel: PositiveInt | Literal["auto"] = "auto"
    pipeline_parallel: PositiveInt = 1
    dtype: str = "auto"
    context_tokens: PositiveInt | None = None
    max_output_tokens: PositiveInt | None = None
    max_concurrency: PositiveInt = 256
    kv_cache_gib: PositiveFloat = 1.0
    cpus: Annotated[float, Field(ge=0)] = 0
    resources: dict[str, PositiveFloat] = {}
    gpus_per_node: PositiveInt = 8
    usd_per_gpu_hour: Usd | None = None
    kv_events: bool = True
    tool_parser: str = "hermes"
    engine_args: dict[str, Any] = {}
    env: dict[str, str] = {}


class Limits(_Section):
    """Rate limits before the first response corrects them; null: unlimited until told."""

    requests_per_minute: PositiveInt | None = None
    input_tokens_per_minute: PositiveInt | None = None
    output_tokens_per_minute: PositiveInt | None = None


class Account(_Section):
    """An account at a server of the Messages API (`accounts:` of fleet.yaml).

    Attributes:
        base_url: the server; null: Anthropic's own. A vLLM server elsewhere works too.
        api_key_env: environment variable that holds the key, read on each node.
        api_key_file: file that holds the key, read on each node; wins over the variable.
        wire: `stream` measures time to first token of unary calls; `unary` leaves it unknown.
        limits: starting limits, by model family or `*`.
        max_concurrency: calls in flight over all processes at first; it adapts.
    """

    base_url: str | None = None
    api_key_env: str = "ANTHROPIC_API_KEY"
    api_key_file: Path | None = None
    wire: Literal["stream", "unary"] = "stream"
    limits: dict[str, Limits] = {}
    max_concurrency: PositiveInt = 64

    def key(self, where: str) -> SecretStr:
        """The account's key, from its file or its environment variable, on this node.

        Args:
            where: what to name in the error, e.g. `fleet.yaml: accounts.main`.

        Raises:
            ConfigError: there is none, or the file cannot be read.
        """
        if self.api_key_file is not None:
            try:
                key = self.api_key_file.expanduser().read_text().strip()
            except OSError as error:
                raise ConfigError(
                    f"cannot read {self.api_key_file} ({error.strerror}); write the key into it",
                    where=f"{where}.api_key_file",
                ) from None
        else:
            key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            remedy = (
                f"write it into {self.api_key_file}"
                if self.api_key_file
                else f"export {self.api_key_env}=... on every node, or set api_key_file"
            )
            raise ConfigError(f"no API key; {remedy}", where=where)
        return SecretStr(key)


class HostedModel(_Section):
    """A model called at an account (`hosted:` of fleet.yaml; its key is the model's name).

    Attributes:
        account: key of `accounts:`.
        tier: the tier it serves; null: the catalogue's.
        max_concurrency: calls in flight at once over all processes.
        context_tokens: overrides the catalogue.
        max_output_tokens: overrides the catalogue.
        prices: USD per million tokens, overrides the catalogue (for servers of your own).
        batch: calls that can wait go to it by Message Batches, at half the price (see `batch:`).
    """

    account: str
    batch: bool = False
    tier: str | None = None
    max_concurrency: PositiveInt | None = None
    context_tokens: PositiveInt | None = None
    max_output_tokens: PositiveInt | None = None
    prices: Prices | None = None


class Prices(_Section):
    """USD per million tokens."""

    input: Usd
    output: Usd
    cache_write_5m: Usd | None = None
    cache_write_1h: Usd | None = None
    cache_read: Usd | None = None


class Retry(_Section):
    """The one transport retry loop.

    Attributes:
        max_attempts: the most sends of one call over all endpoints.
        base_s: first backoff; doubles each time, with full jitter.
        max_backoff_s: the longest backoff of our own; a server's `retry-after` is obeyed in full.
        timeout_s: the longest one send may take.
        ratio: sends after a call's first one that an endpoint may be given, as a share of the
            first sends that it was given: what keeps an outage from becoming a storm. When it is
            used up, a failed call gives its error to the caller instead of being sent again.
        allowance: such sends beyond the share, for low traffic and for one wave of failures;
            they are earned back at the same share.
    """

    max_attempts: PositiveInt = 4
    base_s: PositiveFloat = 0.5
    max_backoff_s: PositiveFloat = 30.0
    timeout_s: PositiveFloat = 600.0
    ratio: Annotated[float, Field(ge=0, le=10)] = 0.2
    allowance: Annotated[int, Field(ge=0)] = 100


class Hedge(_Section):
    """Second sends of slow calls that their caller marked `Routing(idempotent=True)`.

    Attributes:
        percentile: a call that runs longer than this fraction of its class did is slow.
        max_share: how many of the marked calls may be sent twice; 0 switches hedging off.
        min_calls: calls of a class that must have been answered before any of it counts as slow.
    """

    percentile: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    max_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    min_calls: PositiveInt = 20


class Health(_Section):
    """When a replica counts as dead.

    Attributes:
        stall_s: requests running and no new token for so long.
        report_s: how often replicas report their load.
    """

    stall_s: PositiveFloat = 120.0
    report_s: PositiveFloat = 0.25


class Batching(_Section):
    """How calls that can wait are sent by Message Batches (`batch:` of fleet.yaml).

    Attributes:
        min_deadline_s: calls with a shorter deadline are never sent so. The API promises a batch
            within 24 h and most end within one: two leave an ordinary batch room.
        predicted_s: what a call by batch is taken to need until some were measured.
        timeout_s: the longest that one send may take: the API's 24 h and what comes around them.
        linger_s: a batch is sent when no further call came for so long, or ten times that after
            its first.
        max_requests: the most calls of a batch; the API takes 100,000.
        max_bytes: the most bytes of a batch; the API takes 256 MB.
        max_waiting: the most calls of a model that wait for their batches at once.
        poll_s: how soon a batch is first asked about; each time half as long again.
        max_poll_s: how often it is asked about at least.
        keep_s: answers whose callers died are kept so long for others that ask the same (older ones
            are forgotten when a batcher starts).
        store: file (SQLite) of what was sent, on the machine of the head node.
    """

    min_deadline_s: PositiveFloat = 7200.0
    predicted_s: PositiveFloat = 3600.0
    timeout_s: PositiveFloat = 25 * 3600.0
    linger_s: PositiveFloat = 3.0
    max_requests: Annotated[int, Field(ge=1, le=100_000)] = 100_000
    max_bytes: Annotated[int, Field(ge=1_000, le=256_000_000)] = 250_000_000
    max_waiting: PositiveInt = 100_000
    poll_s: PositiveFloat = 5.0
    max_poll_s: PositiveFloat = 60.0
    keep_s: PositiveFloat = 7 * 86400.0
    store: Path = Path("~/.local/state/agentcloud/batches.db")


class Scaling(_Section):
    """When models with bounds for `replicas` get more or fewer of them.

    One more is started when the waiting and the hosted calls that it saves are worth more than
    its price while it starts and for `keep_s` after; one is taken away when that was not so for
    all of `keep_s`.

    Attributes:
        every_s: how often the load is looked at.
        start_s: how long a start is taken to last until one was measured.
        keep_s: the least time for which a replica is paid, and looked at before one goes.
        drain_s: a replica that goes waits so long for its calls; then they are sent elsewhere.
        pending_s: a replica for which there is no room is given up after this, and tried again
            after as long.
        surge_s: a replacement that finds no room beside the old replica gets its room after this.
    """

    every_s: PositiveFloat = 2.0
    start_s: PositiveFloat = 60.0
    keep_s: PositiveFloat = 300.0
    drain_s: PositiveFloat = 600.0
    pending_s: PositiveFloat = 900.0
    surge_s: PositiveFloat = 30.0


class Alarming(_Section):
    """When a change for the worse raises an alarm (`alarms:` of fleet.yaml; docs/alarms.md).

    Attributes:
        enabled: whether calls and tasks are watched.
        window_calls: a window is at least so many calls (or tasks) of one endpoint and agent,
        window_s: and lasts at least so long.
        min_ratio: times and costs: the least change that matters; 1.2 is a fifth worse. Changes of
            less than its root are never told.
        min_rate_step: errors and invalid answers: the least rise that matters, as a share of
            calls; a rate must also double.
        false_alarms: the most false alarms for each window of every series.
        webhook_url: alarms are posted there as JSON when they are raised and when they end.
        webhook_url_env: environment variable that holds the URL, on the head node, where it is a
            secret.
    """

    enabled: bool = True
    window_calls: Annotated[int, Field(ge=10, le=10_000)] = 40
    window_s: PositiveFloat = 30.0
    min_ratio: Annotated[float, Field(ge=1.02, le=10)] = 1.2
    min_rate_step: Annotated[float, Field(gt=0, lt=0.5)] = 0.03
    false_alarms: Annotated[float, Field(ge=1e-9, le=0.01)] = 1e-4
    webhook_url: SecretStr | None = None
    webhook_url_env: str | None = None

    @model_validator(mode="after")
    def _one_webhook(self) -> Self:
        if self.webhook_url is not None:
            if self.webhook_url_env is not None:
                raise ValueError("webhook_url and webhook_url_env: give one of them")
            _check_webhook(self.webhook_url, "webhook_url")
        return self

    def webhook(self, where: str = "fleet.yaml: alarms.webhook_url_env") -> SecretStr | None:
        """The webhook's URL; None: there is none.

        Args:
            where: what to name in the error.

        Raises:
            ConfigError: its variable is not set here, or holds no URL.
        """
        if self.webhook_url_env is None:
            return self.webhook_url
        url = SecretStr(os.environ.get(self.webhook_url_env, "").strip())
        if not url.get_secret_value():
            raise ConfigError(
                f"the variable {self.webhook_url_env} is not set on this node; set it before "
                f"`agentcloud up`",
                where=where,
            )
        try:
            _check_webhook(url, f"the variable {self.webhook_url_env}")
        except ValueError as error:
            raise ConfigError(str(error), where=where) from None
        return url


def _check_webhook(url: SecretStr, name: str) -> None:
    # The URL itself is never shown: it may hold a token.
    try:
        parts = urlsplit(url.get_secret_value())
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_url = False
    if not is_url:
        raise ValueError(f"{name} holds no URL; write http://HOST/... or https://HOST/...")


class FleetConfig(_Section):
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

    models: dict[str, LocalModel] = {}
    accounts: dict[str, Account] = {}
    hosted: dict[str, HostedModel] = {}
    aliases: dict[str, str] = {}
    fallbacks: dict[str, list[str]] = {}
    policy: Policy = Policy.BALANCED
    fleet_budget_usd: Usd | None = None
    retry: Retry = Retry()
    hedge: Hedge = Hedge()
    health: Health = Health()
    batch: Batching = Batching()
    scaling: Scaling = Scaling()
    cache_marks: bool = True
    alarms: Alarming = Alarming()
    store: str | None = None
    lease_timeout_s: PositiveFloat = 30.0
    usd_per_hour_waited: Usd = Decimal(1)
    weights: dict[str, PositiveFloat] = {}
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


HostedModel.model_rebuild()
FleetConfig.model_rebuild()


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
        "limits": Limits,
        "prices": Prices,
    }
    for part in reversed(parents):
        if part in sections:
            return sorted(sections[part].model_fields)
    return sorted(FleetConfig.model_fields)
