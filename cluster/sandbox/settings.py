"""What a sandbox can be told: models, keys, limits, latency, faults. Everything has a default."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from enum import StrEnum
from importlib import resources
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, SecretStr, field_serializer

Seconds = Annotated[float, Field(ge=0)]
V = TypeVar("V")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Settings):
    """One model as the server knows it.

    Attributes:
        display_name: name for people.
        line: haiku, sonnet, opus, ...
        family: models of one family share an account's limits.
        created_at: RFC 3339.
        context_tokens: prompt and answer together.
        max_output_tokens: the largest `max_tokens` accepted.
        min_cache_tokens: shorter prompts are silently not cached.
        thinking: accepted values of `thinking.type`.
        thinks_by_default: the real model thinks when `thinking` is not given.
        hides_thinking: `thinking.display` is `omitted` unless given: blocks have empty texts.
        forced_tools: whether `tool_choice` may be `any` or `tool`.
        prefill: whether a conversation may end with an assistant message.
        sampling: whether `temperature`, `top_p` and `top_k` may be given.
    """

    display_name: str
    line: Literal["haiku", "sonnet", "opus", "fable", "mythos"] | None = None
    family: str
    created_at: str = "2026-01-01T00:00:00Z"
    context_tokens: PositiveInt = 200_000
    max_output_tokens: PositiveInt = 64_000
    min_cache_tokens: PositiveInt = 1024
    thinking: frozenset[Literal["enabled", "adaptive", "between_tools", "disabled"]] = frozenset(
        {"enabled", "disabled"}
    )
    thinks_by_default: bool = False
    hides_thinking: bool = False
    forced_tools: bool = True
    prefill: bool = True
    sampling: bool = True


def known_models() -> dict[str, ModelSpec]:
    """The models of models.json, by name."""
    text = resources.files(__package__).joinpath("models.json").read_text(encoding="utf-8")
    return {name: ModelSpec(**data) for name, data in json.loads(text)["models"].items()}


class RateLimits(_Settings):
    """Limits of one account for one model family; None is unlimited.

    Attributes:
        requests_per_minute: requests.
        input_tokens_per_minute: uncached input and cache writes; cache reads are free.
        output_tokens_per_minute: tokens generated.
        burst_s: bucket size in seconds of refill. 60 lets a whole minute's limit through at once;
            less makes short bursts fail below the minute's limit, as the real API may.
    """

    requests_per_minute: PositiveInt | None = None
    input_tokens_per_minute: PositiveInt | None = None
    output_tokens_per_minute: PositiveInt | None = None
    burst_s: Annotated[float, Field(gt=0, le=60)] = 60.0


class Latency(_Settings):
    """How slow a model is.

    Attributes:
        ttft_s: seconds to the first token.
        per_output_token_s: seconds for every further output token.
        jitter: each wait is multiplied by a seeded uniform draw from 1 - jitter to 1 + jitter.
    """

    ttft_s: Seconds = 0.0
    per_output_token_s: Seconds = 0.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0


class FaultKind(StrEnum):
    """What can go wrong on demand."""

    RATE_LIMIT = "rate_limit"
    API_ERROR = "api_error"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    BILLING = "billing"
    PERMISSION = "permission"
    SPEND_LIMIT = "spend_limit"
    AUTHENTICATION = "authentication"
    CONFLICT = "conflict"
    STREAM_ERROR = "stream_error"
    CUT_BEFORE_HEADERS = "cut_before_headers"
    CUT_MID_BODY = "cut_mid_body"
    CUT_MID_STREAM = "cut_mid_stream"
    HANG = "hang"
    HANG_MID_STREAM = "hang_mid_stream"
    MALFORMED_JSON = "malformed_json"
    MALFORMED_SSE = "malformed_sse"
    SLOW_FIRST_TOKEN = "slow_first_token"  # noqa: S105 - a fault's name
    REFUSAL = "refusal"
    EXPIRED = "expired"
    MAX_TOKENS = "max_tokens"


class Fault(_Settings):
    """One fault.

    Attributes:
        kind: what goes wrong. Faults of streams do the nearest thing to a unary call, and the
            other way round: `stream_error` is a plain error, `cut_mid_stream` a cut body.
        retry_after_s: `retry-after` of error answers; None sends no such header, except that
            `rate_limit` then says 1. More than 60 is what the real client ignores.
        after_deltas: deltas sent before a stream breaks; tokens kept by `max_tokens`, `refusal`.
        delay_s: how long `slow_first_token` waits; for the hangs None is forever.
        error_type: error of `stream_error`.
        model: glob of the models concerned.
        at: what it strikes: `answer`, a call or a request of a batch; `batch`, the creation of a
            batch (an error, or a cut connection after the batch was made). `expired` shows in
            batches alone.
    """

    kind: FaultKind
    retry_after_s: Annotated[int, Field(ge=0)] | None = None
    after_deltas: Annotated[int, Field(ge=0)] = 1
    delay_s: Seconds | None = None
    error_type: Literal["overloaded_error", "api_error", "rate_limit_error", "timeout_error"] = (
        "overloaded_error"
    )
    model: str = "*"
    at: Literal["answer", "batch"] = "answer"


class FaultRule(Fault):
    """A fault that strikes by chance or by plan.

    Attributes:
        probability: chance of each call, drawn from the sandbox's seed.
        calls: numbers (from 1, counted over this rule's models) of the calls it strikes.
        every: strikes every so many calls.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    calls: frozenset[PositiveInt] = frozenset()
    every: PositiveInt | None = None


class BatchSettings(_Settings):
    """How message batches go.

    Attributes:
        takes_s: from the creation of a batch until it is worked off.
        expires_s: a batch that takes as long expires.
        max_requests: larger batches get 413.
        max_bytes: larger ones too.
    """

    takes_s: Seconds = 0.0
    expires_s: Annotated[float, Field(gt=0)] = 86400.0
    max_requests: PositiveInt = 100_000
    max_bytes: PositiveInt = 256_000_000


class SandboxConfig(_Settings):
    """Everything about a sandbox.

    Attributes:
        api_keys: accepted keys; None accepts every key that starts with `sandbox`.
        models: the models served, by name.
        aliases: further names -> a name in `models`. Unconfigured names are not found.
        limits: by model family or `*`. Every account (key) has its own.
        latency: by glob of model names; the first that matches holds.
        batches: how long message batches take, how large they may be.
        faults: by chance or by plan; see also POST /sandbox/faults and `x-sandbox-fault`.
        seed: of faults' chances and latency's jitter.
        answer_tokens: length of a synthetic text answer, in tokens.
        think_by_default: models that think unasked do so here as well. Off, they think only when
            `thinking` asks for it, and answers start with what was asked for.
        signing_key: signs thinking blocks. Sandboxes with equal keys accept each other's.
        max_body_bytes: larger requests get 413.
        keep_calls: how many calls GET /sandbox/state remembers.
    """

    api_keys: tuple[SecretStr, ...] | None = None
    models: Mapping[str, ModelSpec] = Field(default_factory=known_models)
    aliases: Mapping[str, str] = Field(default_factory=dict)
    limits: Mapping[str, RateLimits] = Field(default_factory=dict)
    latency: Mapping[str, Latency] = Field(default_factory=dict)
    batches: BatchSettings = BatchSettings()
    faults: tuple[FaultRule, ...] = ()
    seed: int = 0
    answer_tokens: PositiveInt = 32
    think_by_default: bool = False
    signing_key: SecretStr = SecretStr("agentcloud-sandbox")
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    keep_calls: PositiveInt = 10_000

    @field_serializer("api_keys", "signing_key", when_used="json")
    def _reveal(self, value: SecretStr | tuple[SecretStr, ...] | None) -> str | list[str] | None:
        # JSON is how a sandbox of its own process gets its configuration; repr stays masked.
        if value is None:
            return None
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        return [key.get_secret_value() for key in value]

    def accepts_key(self, key: str) -> bool:
        """Whether `key` opens an account."""
        if self.api_keys is None:
            return key.startswith("sandbox")
        return any(key == known.get_secret_value() for known in self.api_keys)

    def find_model(self, name: str) -> tuple[str, ModelSpec] | None:
        """The model that serves `name`, under its own name; None if there is none."""
        name = self.aliases.get(name, name)
        spec = self.models.get(name)
        return None if spec is None else (name, spec)

    def limits_of(self, family: str) -> RateLimits:
        """Limits of a model family."""
        return self.limits.get(family) or self.limits.get("*") or RateLimits()

    def latency_of(self, model: str) -> Latency:
        """Latency of a model."""
        return _first_match(self.latency, model) or Latency()


def _first_match(by_glob: Mapping[str, V], name: str) -> V | None:
    for pattern, value in by_glob.items():
        if fnmatch.fnmatchcase(name, pattern):
            return value
    return None
