"""Sections of fleet.yaml that say what serves: local models, accounts, hosted models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from agentcloud.cluster.errors import ConfigError

Usd = Annotated[Decimal, Field(ge=0)]


class Section(BaseModel):
    """A part of fleet.yaml: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Replicas(Section):
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


class LocalModel(Section):
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


class Limits(Section):
    """Rate limits before the first response corrects them; null: unlimited until told."""

    requests_per_minute: PositiveInt | None = None
    input_tokens_per_minute: PositiveInt | None = None
    output_tokens_per_minute: PositiveInt | None = None


class Account(Section):
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


class HostedModel(Section):
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


class Prices(Section):
    """USD per million tokens."""

    input: Usd
    output: Usd
    cache_write_5m: Usd | None = None
    cache_write_1h: Usd | None = None
    cache_read: Usd | None = None
