"""Cheap first: which tiers to try in which order, and when an answer is good enough.

Definitions and the pure decision; escalate.py does the asking.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from agentcloud.cluster.errors import AgentError
from agentcloud.cluster.tiers import FleetTiers

#: `tier="auto"`: the fleet's tiers, cheapest first.
AUTO: Final = "auto"


@dataclass(frozen=True, slots=True)
class Schema:
    """The answer validates as `output`."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Enough of several samples say the same. Make one with `agreement`."""

    n: int
    at_least: float
    temperature: float | None


@dataclass(frozen=True, slots=True)
class Logprob:
    """The model was sure enough of its answer. Make one with `logprob`."""

    at_least: float


#: A user's own check: of the validated output or the text; sync or async. It passes unless it
#: returns something false other than None, or raises.
Validator: TypeAlias = Callable[[Any], bool | Awaitable[bool | None] | None]
Check: TypeAlias = Schema | Agreement | Logprob | Validator

#: The answer validates as `output`; always checked where there is one, written for clarity.
schema: Final = Schema()


def agreement(n: int = 3, at_least: float = 0.67, *, temperature: float | None = None) -> Agreement:
    """Several samples, asked at once; the answer is what most of them say.

    Outputs are the same when all their fields are; texts when they are but for case, blanks and
    the punctuation around them. A sample that does not validate agrees with none.

    Args:
        n: samples; every one is paid.
        at_least: share of them that must agree, to two digits: 0.67 of 3 is 2.
        temperature: of the samples; None: the ask's. At 0 samples do not differ.

    Raises:
        AgentError: fewer than two samples, or a share that is none.
    """
    if n < 2:
        raise AgentError(f"agreement(n={n}): it takes two samples to agree; give n=2 or more")
    if not 0 <= at_least <= 1:
        raise AgentError(f"agreement(at_least={at_least:g}): a share is between 0 and 1")
    if temperature == 0:
        raise AgentError("agreement(temperature=0): all samples would be the same; give more")
    return Agreement(n, at_least, temperature)


def logprob(at_least: float = -0.5) -> Logprob:
    """The mean log-probability of the answer's tokens, as the local model that gave it tells it.

    0 is certain; tokens that the schema forces are. `agentcloud tune` finds the threshold. In a
    tier that holds hosted models too, its local ones are asked: no other can tell.

    Args:
        at_least: natural logarithm, at most 0.

    Raises:
        AgentError: a threshold above 0, which no answer reaches.
    """
    if math.isnan(at_least) or at_least > 0:
        raise AgentError(f"logprob(at_least={at_least:g}): a log-probability is at most 0")
    return Logprob(at_least)


class Cascade:
    """Tiers from cheap to dear, and what an answer must pass to be taken before the last.

    The last tier's answer is final: `agreement` and `logprob` are not made there; a validator that
    refuses it is an error.

    Args:
        tiers: tiers or models, each tried once.
        check: what answers are held to, one or several; the cheap ones are decided first.
        measure: every tier's signals are taken and none refuses: how `agentcloud tune` looks.

    Raises:
        AgentError: a check or a tier that cannot be used.
    """

    __slots__ = ("agreement", "logprob", "measure", "tiers", "validators", "wants_schema")

    def __init__(
        self, tiers: Sequence[str], check: Check | Sequence[Check] = (), *, measure: bool = False
    ) -> None:
        self.tiers = (tiers,) if isinstance(tiers, str) else tuple(tiers)
        if not self.tiers or len(set(self.tiers)) < len(self.tiers) or AUTO in self.tiers:
            told = ", ".join(self.tiers) or "none"
            raise AgentError(f"Cascade(tiers=({told})): name different tiers, cheapest first")
        given: Any = check  # Untyped callers may give anything.
        several = isinstance(given, Sequence) and not isinstance(given, str)
        checks: list[Any] = list(given) if several else [given]
        if wrong := [c for c in checks if not (isinstance(c, _BUILT_IN) or callable(c))]:
            raise AgentError(
                f"Cascade: {wrong[0]!r} is no check; use schema, agreement(), logprob() or a "
                f"function"
            )
        self.agreement = _only([c for c in checks if isinstance(c, Agreement)], "agreement")
        self.logprob = _only([c for c in checks if isinstance(c, Logprob)], "logprob")
        self.wants_schema = any(isinstance(c, Schema) for c in checks)
        self.validators: tuple[Validator, ...] = tuple(
            c for c in checks if not isinstance(c, _BUILT_IN)
        )
        self.measure = measure

    def __repr__(self) -> str:
        names = [getattr(each, "__name__", repr(each)) for each in self.validators]
        checks = [repr(each) for each in (self.agreement, self.logprob) if each] + names
        return f"Cascade({' -> '.join(self.tiers)}; {', '.join(checks) or 'schema'})"

    def check_on(self, fleet: FleetTiers) -> None:
        """See that a fleet can run it, before anything is asked.

        Raises:
            AgentError: an unknown tier, one model behind two tiers, or log-probabilities of a
                tier that has no local model.
        """
        seen: dict[str, str] = {}
        asked = self.tiers if self.measure else self.tiers[:-1]
        for tier in self.tiers:
            models = fleet.models_of(tier)
            if not models:
                known = ", ".join(fleet.ordered)
                raise AgentError(f"{self!r}: no tier or model {tier!r} in this fleet ({known})")
            for model in sorted(models):
                if model in seen:
                    raise AgentError(
                        f"{self!r}: {model} serves {seen[model]!r} and {tier!r}, and would be "
                        f"asked the same again; leave one out"
                    )
                seen[model] = tier
            if self.logprob is not None and tier in asked and not fleet.has_local(tier):
                raise AgentError(
                    f"{self!r}: no local model serves {tier!r}, and hosted ones tell no "
                    f"log-probabilities; use agreement() there"
                )


_BUILT_IN = (Schema, Agreement, Logprob)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a tier, as the decision sees it.

    Attributes:
        key: what agreement compares; None: it is no answer.
        problem: why it is none.
        mean_logprob: None: not told.
        endpoint: who gave it.
    """

    key: str | None
    problem: str | None = None
    mean_logprob: float | None = None
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a tier's samples.

    Attributes:
        chosen: the sample that is the tier's answer; None: there is none.
        refused: why it is not good enough; None: take it.
        share: of the samples that agree; None: not asked for.
    """

    chosen: int | None
    refused: str | None = None
    share: float | None = None


def decide(samples: Sequence[Sample], cascade: Cascade) -> Decision:
    """Take a tier's answer or say why not; validators come after.

    Args:
        samples: at least one; several for agreement.
        cascade: its checks.
    """
    counts = Counter(sample.key for sample in samples if sample.key is not None)
    share = None
    if not counts:
        share = 0.0 if cascade.agreement else None
        return Decision(None, samples[0].problem or "no answer", share)
    best, votes = counts.most_common(1)[0]  # of equals the first that was asked
    chosen = next(index for index, sample in enumerate(samples) if sample.key == best)
    refused = None
    if cascade.agreement is not None:
        share = votes / len(samples)
        if round(share, 2) < cascade.agreement.at_least:
            least = cascade.agreement.at_least
            refused = f"{votes} of {len(samples)} samples agree, asked for {least:g}"
    if refused is None and cascade.logprob is not None:
        told, least = samples[chosen].mean_logprob, cascade.logprob.at_least
        if told is None:
            refused = f"{samples[chosen].endpoint or 'the endpoint'} tells no log-probability"
        elif told < least:
            refused = f"mean log-probability {told:.4g}, asked for {least:.4g}"
    return Decision(chosen, refused, share)


def _only(found: Sequence[Any], name: str) -> Any:
    if len(found) > 1:
        raise AgentError(f"Cascade: {name} is given twice; give one")
    return found[0] if found else None
