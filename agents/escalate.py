"""Asking tier after tier until an answer is good enough."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from anthropic.types import Message
from pydantic import BaseModel, ValidationError

from agentcloud.agents.cascade import Cascade, Decision, Sample, Validator, decide
from agentcloud.agents.concurrent import map_ordered
from agentcloud.agents.loop import FATAL_IN_TOOLS, is_cut, refusal
from agentcloud.agents.output import explain, output_config, parse_output
from agentcloud.agents.ports import Sender
from agentcloud.agents.prompt import answer_text
from agentcloud.agents.usage import Usage
from agentcloud.cluster.contracts import Escalation, Receipt
from agentcloud.cluster.errors import (
    AgentError,
    BackendError,
    ContextTooLong,
    NoEndpoint,
    OutputInvalid,
)

T = TypeVar("T", bound=BaseModel)


class TierSender(Protocol):
    """Makes the `Sender` of one tier."""

    def __call__(self, tier: str, *, mean_logprob: bool, escalated: Escalation | None) -> Sender:
        """A sender whose first call's receipt says what it was escalated from."""
        ...


@dataclass(frozen=True, slots=True)
class CascadeAsk:
    """One ask, as a cascade makes it.

    Attributes:
        request: without `model` and `output_config.format`.
        output: the pydantic model of the answer; None: text.
        sender: makes each tier's.
        final: asks the last tier as any ask without a cascade is, repairs included.
        usage: the task's receipts, which senders add to.
        before_tier: raises where the ask's own limits forbid another tier.
    """

    request: dict[str, Any]
    output: type[BaseModel] | None
    sender: TierSender
    final: Callable[[Sender, dict[str, Any]], Awaitable[Any]]
    usage: Usage
    before_tier: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Answer:
    """A tier's answer: the value for the user, and what the decision sees of it."""

    sample: Sample
    value: Any
    message: Message
    is_cut: bool


async def ask_cascade(cascade: Cascade, ask: CascadeAsk) -> Any:
    """Ask the tiers in order; the first answer that passes the checks is the ask's.

    Each tier is asked once. An answer that `max_tokens` cut off is not taken; an output that was
    cut gets twice the tokens at the next tier. A tier that cannot take the request at all (too
    long for it, or it lacks a feature) is passed over at no cost; any other error ends the ask.

    Raises:
        AgentError: the ask cannot be checked so.
        Refused: a model refused.
        OutputInvalid: the last tier's answer does not validate, or a validator refuses it.
        AttemptsExhausted: an escalation is one of the task's extra attempts, and none remains.
    """
    _check_ask(cascade, ask)
    request, past = dict(ask.request), _Past()
    for place, tier in enumerate(cascade.tiers):
        request["model"] = tier
        last = place == len(cascade.tiers) - 1
        if past.tiers:
            ask.before_tier()
        sender = ask.sender(
            tier,
            mean_logprob=cascade.logprob is not None and (cascade.measure or not last),
            escalated=past.escalation(),
        )
        if last and not cascade.measure:
            value = await ask.final(sender, request)
            if problem := await _validate(cascade.validators, value):
                raise OutputInvalid(f"{tier}: {problem}, and no tier is left", attempts=place + 1)
            return value
        try:
            answers = await _sample(sender, request, cascade, ask.output)
        except (NoEndpoint, ContextTooLong) as error:
            if last:
                raise
            past.add(tier, f"cannot take it: {error}", Decimal(0))
            continue
        decision = decide([answer.sample for answer in answers], cascade)
        _show(decision, answers, ask.usage)
        if decision.chosen is None:
            refusals = [a.message for a in answers if a.message.stop_reason == "refusal"]
            if len(refusals) == len(answers):
                raise refusal(refusals[0])
        problem = decision.refused
        if decision.chosen is not None:
            value = answers[decision.chosen].value
            if cascade.measure or problem is None:
                problem = await _validate(cascade.validators, value)
            if problem is None:
                return value
        if last:
            raise OutputInvalid(f"{tier}: {problem}", attempts=1)
        past.add(tier, problem or "no answer", _cost(answers))
        sender.spend_attempt(f"escalation to {cascade.tiers[place + 1]}", problem)
        if ask.output is not None and all(answer.is_cut for answer in answers):
            request["max_tokens"] *= 2
    raise AssertionError("a cascade has tiers")


class _Past:
    """The tiers whose answers were not taken."""

    def __init__(self) -> None:
        self.tiers: list[str] = []
        self._reasons: list[str] = []
        self._spent_usd: Decimal | None = Decimal(0)

    def add(self, tier: str, reason: str, cost_usd: Decimal | None) -> None:
        self.tiers.append(tier)
        self._reasons.append(" ".join(reason.split()))
        unknown = self._spent_usd is None or cost_usd is None
        self._spent_usd = None if unknown else (self._spent_usd or 0) + (cost_usd or Decimal(0))

    def escalation(self) -> Escalation | None:
        if not self.tiers:
            return None
        return Escalation(tuple(self.tiers), tuple(self._reasons), self._spent_usd)


def _check_ask(cascade: Cascade, ask: CascadeAsk) -> None:
    if cascade.wants_schema and ask.output is None:
        raise AgentError("ask: the schema check needs output=; give a model, or another check")
    sampled = cascade.agreement
    if sampled and sampled.temperature is None and ask.request.get("temperature") == 0:
        raise AgentError(
            "ask: at temperature=0 all samples of agreement() are the same; give "
            "agreement(temperature=...) one of its own"
        )


async def _sample(
    sender: Sender, request: dict[str, Any], cascade: Cascade, output: type[BaseModel] | None
) -> list[_Answer]:
    """The tier's answers, asked at once: one, or several to agree."""
    count = 1
    if (sampled := cascade.agreement) is not None:
        count = sampled.n
        if sampled.temperature is not None:
            request = {**request, "temperature": sampled.temperature}
    if output is not None:
        config = {**request.get("output_config", {}), **output_config(output)}
        request = {**request, "output_config": config}

    async def once(_: int) -> _Answer:
        return _answer(await sender.send(request), request, output)

    return await map_ordered(once, range(count), concurrency=count)


def _answer(message: Message, request: dict[str, Any], output: type[BaseModel] | None) -> _Answer:
    text, cut = answer_text(message), False
    value: Any = None
    key = problem = None
    # Cases: refused; an output that validates or not, perhaps because it was cut; a text, whole,
    # cut or missing.
    if message.stop_reason == "refusal":
        problem = "it refused"
    elif output is not None:
        try:
            parsed = parse_output(output, text)
            value, key = parsed, parsed.model_dump_json()
        except ValidationError as error:
            cut = is_cut(message)
            problem = explain(error).splitlines()[0]
            if message.stop_reason == "model_context_window_exceeded":
                problem = "its context is full"
    elif message.stop_reason == "end_turn" or message.stop_reason == "stop_sequence":
        value, key = text, _normal(text) or None
        problem = None if key else "no text"
    else:
        cut = message.stop_reason == "max_tokens"
        problem = f"it ended with {message.stop_reason}"
    if cut:
        problem = f"cut off at max_tokens={request['max_tokens']}"
    receipt = _receipt(message)
    sample = Sample(
        key,
        problem,
        receipt.mean_logprob if receipt else None,
        receipt.endpoint if receipt else message.model,
    )
    return _Answer(sample, value, message, cut)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).strip(".,;:!?\"'` ")


def _receipt(message: Message) -> Receipt | None:
    return getattr(message, "agentcloud", None)


def _cost(answers: Sequence[_Answer]) -> Decimal | None:
    receipts = [_receipt(answer.message) for answer in answers]
    costs = [None if receipt is None else receipt.cost_usd for receipt in receipts]
    known = [cost for cost in costs if cost is not None]
    return sum(known, Decimal(0)) if len(known) == len(costs) else None


def _show(decision: Decision, answers: Sequence[_Answer], usage: Usage) -> None:
    """Write the agreement onto the samples' receipts."""
    if decision.share is not None:
        receipts = [_receipt(answer.message) for answer in answers]
        usage.mark_agreement({r.call_id for r in receipts if r is not None}, decision.share)


async def _validate(validators: Sequence[Validator], value: Any) -> str | None:
    """What the first validator that refuses says; None: all pass."""
    for validator in validators:
        name = getattr(validator, "__name__", type(validator).__name__)
        try:
            passed = validator(value)
            if inspect.isawaitable(passed):
                passed = await passed
        except (*FATAL_IN_TOOLS, BackendError):
            raise  # of a call that the validator made: says nothing about the answer
        except Exception as error:
            return f"check {name}: {type(error).__name__}: {error}"
        if passed is not None and not passed:
            return f"check {name} refuses it"
    return None
