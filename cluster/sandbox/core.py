"""A sandbox's state, and the way of one call through it up to its answer; HTTP is elsewhere."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

from agentcloud.cluster.clock import Clock, SystemClock
from agentcloud.cluster.sandbox.answers import Answer, Call, Responder, cut
from agentcloud.cluster.sandbox.buckets import AccountLimits
from agentcloud.cluster.sandbox.calls import CallLog, CallRecord
from agentcloud.cluster.sandbox.errors import ApiError, invalid
from agentcloud.cluster.sandbox.faults import FaultBox, error_of
from agentcloud.cluster.sandbox.prompt import count_tokens, prompt_blocks
from agentcloud.cluster.sandbox.settings import (
    Fault,
    FaultKind,
    ModelSpec,
    RateLimits,
    SandboxConfig,
)
from agentcloud.cluster.sandbox.signatures import Signer
from agentcloud.cluster.sandbox.synthetic import SyntheticResponder
from agentcloud.cluster.sandbox.usage import PromptCache, PromptUsage
from agentcloud.cluster.sandbox.validation import check_prompt, check_request, thinks

_REFUSAL = {"type": "refusal", "category": None, "explanation": "A sandbox fault asked for it."}
#: Fields that do not change what is answered.
_NOT_CONTENT = ("stream", "metadata", "cache_control")


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer ready to be sent, with all that sending needs."""

    message_id: str
    model: str
    answer: Answer
    usage: PromptUsage
    limits: AccountLimits
    fault: Fault | None
    stream: bool


class SandboxCore:
    """Limits, cache, faults and the call log of one sandbox."""

    def __init__(
        self,
        config: SandboxConfig,
        *,
        responder: Responder | None = None,
        clock: Clock | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.wall_s = wall_s
        self.responder = responder or SyntheticResponder(config.answer_tokens)
        self.signer = Signer(config.signing_key.get_secret_value())
        self.faults = FaultBox(config.faults, config.seed)
        self.calls = CallLog(config.keep_calls)
        self.cache = PromptCache()
        self._limits: dict[tuple[str, str], AccountLimits] = {}
        # Ids differ between runs, as real ones do: nothing may depend on them.
        self._id_prefix = hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:10]
        self._ids = itertools.count(1)

    def __repr__(self) -> str:
        return f"<SandboxCore {self.calls!r} {self.cache!r} {self.faults!r}>"

    def reset(self) -> None:
        """Full buckets, an empty cache, no queued fault, no remembered call."""
        self._limits.clear()
        self.cache.clear()
        self.faults.reset()
        self.calls.reset()

    def new_id(self, prefix: str) -> str:
        """An id such as the API's: `prefix`, then 24 characters."""
        return f"{prefix}_01{self._id_prefix}{next(self._ids):012d}"

    def limits_of(self, account: str, family: str) -> AccountLimits:
        """The buckets of an account for a model family."""
        key = (account, family)
        limits = self._limits.get(key)
        if limits is None:
            limits = AccountLimits(self.config.limits_of(family), self.clock.now())
            self._limits[key] = limits
        return limits

    def state(self, last: int | None = None) -> dict[str, Any]:
        """What GET /sandbox/state answers; `last` limits the calls listed."""
        now_s = self.clock.now()
        buckets: dict[str, dict[str, Any]] = {}
        for (account, family), limits in self._limits.items():
            buckets.setdefault(account, {})[family] = limits.remaining(now_s)
        return {"buckets": buckets, "faults_queued": self.faults.queued, **self.calls.as_dict(last)}

    def count(self, body: bytes, record: CallRecord) -> int:
        """Tokens of a prompt.

        Raises:
            ApiError: the request is invalid.
        """
        params = parse_body(body)
        model, spec = self._find_model(params, record)
        check_request(params, model, spec, self.signer, counting=True)
        return count_tokens(params)

    async def answer(
        self, body: bytes, record: CallRecord, fault_header: str | None, *, batch: bool = False
    ) -> Outcome:
        """Take one call as far as its answer: checked, let in, answered, not yet sent.

        A call of a batch is under no limit.

        Raises:
            ApiError: it is invalid, over a limit, struck by a fault, or the responder failed.
        """
        params = parse_body(body)
        model, spec = self._find_model(params, record)
        stream = params.pop("stream", False)
        check_request({**params, "stream": stream}, model, spec, self.signer, counting=False)
        record.stream = bool(stream)
        blocks = prompt_blocks(params)
        check_prompt(blocks, model, spec)

        fault = self.faults.next(model, fault_header)
        if fault is not None:
            record.fault = fault.kind.value
            error = error_of(fault, stream=record.stream)
            if error is not None:
                raise error

        usage = self.cache.look_up(
            blocks,
            salt=f"{record.account}\0{model}",
            min_tokens=spec.min_cache_tokens,
            now_s=self.clock.now(),
        )
        if batch:
            limits = AccountLimits(RateLimits(), self.clock.now())
            self.cache.commit(usage, self.clock.now())
        else:
            limits = self._admit(record, spec.family, usage)
        answer = await self._respond(params, model, spec, usage)
        if answer.input_tokens is not None:
            counted = usage.scaled_to(answer.input_tokens)
            limits.take_input(counted.limited_tokens - usage.limited_tokens, self.clock.now())
            usage = counted
        answer = _with_fault(answer, fault)
        record.usage = usage.as_dict(answer.output_tokens, answer.thinking_tokens)
        return Outcome(self.new_id("msg"), model, answer, usage, limits, fault, record.stream)

    def _find_model(self, params: Mapping[str, Any], record: CallRecord) -> tuple[str, ModelSpec]:
        name = params.get("model")
        if not isinstance(name, str) or not name:
            raise invalid("model", "Field required" if name is None else "Input should be a string")
        record.model = name
        found = self.config.find_model(name)
        if found is None:
            raise ApiError("not_found_error", f"model: {name}")
        return found

    def _admit(self, record: CallRecord, family: str, usage: PromptUsage) -> AccountLimits:
        now_s = self.clock.now()
        limits = self.limits_of(record.account, family)
        refusal = limits.admit(usage.limited_tokens, now_s)
        record.remaining = limits.remaining(now_s)
        if refusal is None:
            return limits
        headers = limits.headers(now_s, self.wall_s())
        headers["retry-after"] = str(refusal.retry_after_s)
        raise ApiError(
            "rate_limit_error",
            f"This request would exceed the rate limit of {refusal.limit_per_minute} "
            f"{refusal.dimension} per minute for {family} models",
            headers=headers,
        )

    async def _respond(
        self, params: Mapping[str, Any], model: str, spec: ModelSpec, usage: PromptUsage
    ) -> Answer:
        room = spec.context_tokens - usage.total_tokens
        budget = min(params["max_tokens"], room)
        if budget <= 0:
            full = params["max_tokens"] > 0
            return Answer((), "model_context_window_exceeded" if full else "max_tokens")
        content = {key: value for key, value in params.items() if key not in _NOT_CONTENT}
        answer = await self.responder.respond(
            Call(
                params=params,
                model=model,
                digest=hashlib.sha256(_canonical(content)).digest(),
                output_budget_tokens=budget,
                thinks=self._thinks(params, spec),
                hides_thinking=_hides_thinking(params, spec),
                signer=self.signer,
            )
        )
        if answer.stop_reason == "max_tokens" and budget < params["max_tokens"]:
            return replace(answer, stop_reason="model_context_window_exceeded")
        return answer

    def _thinks(self, params: Mapping[str, Any], spec: ModelSpec) -> bool:
        if params.get("thinking") is not None:
            return thinks(params)
        return self.config.think_by_default and spec.thinks_by_default


def _hides_thinking(params: Mapping[str, Any], spec: ModelSpec) -> bool:
    display = (params.get("thinking") or {}).get("display")
    return spec.hides_thinking if display is None else bool(display == "omitted")


def _canonical(content: Mapping[str, Any]) -> bytes:
    # Clients differ in the order of keys between their own methods; the content is the same.
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def parse_body(body: bytes) -> dict[str, Any]:
    """The request's body.

    Raises:
        ApiError: it is not a JSON object.
    """
    try:
        params = from_json(body)
    except ValueError as error:
        raise invalid("body", f"The request body is not valid JSON: {error}") from error
    if not isinstance(params, dict):
        raise invalid("body", "Input should be a valid dictionary")
    return params


def _with_fault(answer: Answer, fault: Fault | None) -> Answer:
    if fault is None:
        return answer
    if fault.kind is FaultKind.MAX_TOKENS:
        return cut(answer, fault.after_deltas, "max_tokens")
    if fault.kind is FaultKind.REFUSAL:
        return replace(cut(answer, fault.after_deltas, "refusal"), stop_details=_REFUSAL)
    return answer
