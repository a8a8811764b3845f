"""Which call meets which fault: by its own header, by the queue, by rule."""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import ValidationError

from agentcloud.cluster.sandbox.errors import ApiError, invalid
from agentcloud.cluster.sandbox.settings import Fault, FaultKind, FaultRule

FAULT_HEADER = "x-sandbox-fault"
_ERRORS = {
    FaultKind.RATE_LIMIT: ("rate_limit_error", "Number of requests has exceeded your rate limit"),
    FaultKind.API_ERROR: ("api_error", "Internal server error"),
    FaultKind.OVERLOADED: ("overloaded_error", "Overloaded"),
    FaultKind.TIMEOUT: ("timeout_error", "The request timed out"),
    FaultKind.BILLING: ("billing_error", "Your credit balance is too low"),
    FaultKind.PERMISSION: ("permission_error", "Your key lacks permission for this resource"),
    FaultKind.SPEND_LIMIT: (
        "invalid_request_error",
        "You have reached your specified API usage limits",
    ),
    FaultKind.AUTHENTICATION: ("authentication_error", "invalid x-api-key"),
    FaultKind.CONFLICT: ("conflict_error", "Another request is changing this resource"),
}


class FaultBox:
    """Decides for every call which fault it meets, if any.

    A fault in the call's own header comes first, then the queue, then the rules in their order.
    Every rule sees every call to its models, whether or not another fault struck it, so a plan by
    call numbers does not shift.
    """

    def __init__(self, rules: Sequence[FaultRule], seed: int) -> None:
        self._rules = tuple(rules)
        self._seed = seed
        self._queue: deque[Fault] = deque()
        self.reset()

    def __repr__(self) -> str:
        return f"<FaultBox {len(self._queue)} queued, {len(self._rules)} rules>"

    @property
    def queued(self) -> int:
        """Faults waiting for a call."""
        return len(self._queue)

    def reset(self) -> None:
        """Empty the queue, start the rules anew."""
        self._queue.clear()
        self._rng = Random(self._seed)  # noqa: S311 - repeatable on purpose
        self._seen = [0] * len(self._rules)

    def add(self, fault: Fault, count: int = 1) -> None:
        """Strike the next `count` calls to the fault's models."""
        self._queue.extend([fault] * count)

    def forget(self) -> None:
        """Strike no more calls but those of the rules."""
        self._queue.clear()

    def next(
        self, model: str, header: str | None, at: Literal["answer", "batch"] = "answer"
    ) -> Fault | None:
        """The fault of one call.

        Raises:
            ApiError: the header cannot be read.
        """
        by_rule = self._by_rule(model, at)
        if header:
            return parse_fault(header)
        for fault in self._queue:
            if fault.at == at and fnmatch.fnmatchcase(model, fault.model):
                self._queue.remove(fault)
                return fault
        return by_rule

    def _by_rule(self, model: str, at: str) -> Fault | None:
        struck: Fault | None = None
        for index, rule in enumerate(self._rules):
            if rule.at != at or not fnmatch.fnmatchcase(model, rule.model):
                continue
            self._seen[index] += 1
            number = self._seen[index]
            strikes = number in rule.calls or (rule.every and number % rule.every == 0)
            if rule.probability and self._rng.random() < rule.probability:
                strikes = True
            if strikes and struck is None:
                struck = rule
        return struck


def parse_fault(header: str) -> Fault:
    """The fault of a header such as `rate_limit; retry_after_s=7`.

    Raises:
        ApiError: it names no fault, or a field that faults do not have.
    """
    kind, *pairs = (part.strip() for part in header.split(";"))
    fields = dict(pair.partition("=")[::2] for pair in pairs if pair)
    try:
        return Fault.model_validate({"kind": kind, **fields})
    except ValidationError as error:
        raise invalid(FAULT_HEADER, first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """What pydantic found first, in one line."""
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def error_of(fault: Fault, *, stream: bool) -> ApiError | None:
    """The error that answers a call struck by `fault`; None if the fault shows otherwise."""
    headers = {}
    if fault.retry_after_s is not None:
        headers["retry-after"] = str(fault.retry_after_s)
    if fault.kind is FaultKind.STREAM_ERROR and not stream:
        return ApiError(fault.error_type, "Overloaded", headers=headers)
    if fault.kind not in _ERRORS:
        return None
    if fault.kind is FaultKind.RATE_LIMIT:
        headers.setdefault("retry-after", "1")
    error_type, message = _ERRORS[fault.kind]
    return ApiError(error_type, message, headers=headers)
