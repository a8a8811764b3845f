"""Every error of agentcloud; each carries its data and survives pickling.

A user's error is one line: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

#: What a person reads of an error that is not ours, at most.
_ERROR_CHARS: Final = 500


def _rebuild(cls: type[AgentCloudError], state: dict[str, Any]) -> AgentCloudError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class AgentCloudError(Exception):
    """The root: `message` is the one line a user reads.

    Attributes:
        spent: what the ask that it ended had used until then, as `Usage.to_dict` has it; None
            where no ask was under way.
    """

    spent: dict[str, Any] | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by calling cls(*args), which loses keyword data: carry the whole state.
        return _rebuild, (type(self), dict(self.__dict__))

    def __str__(self) -> str:
        return self.message


class ConfigError(AgentCloudError):
    """A setting is wrong: `where` names file and key."""

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class PlanError(ConfigError):
    """A model cannot be placed; `nearest` says what would fit, if anything would."""

    def __init__(
        self, message: str, *, where: str | None = None, nearest: str | None = None
    ) -> None:
        message = f"{message}; nearest that fits: {nearest}" if nearest else message
        super().__init__(message, where=where)
        self.nearest = nearest


class UnplannedModel(PlanError):
    """A model whose memory is not known exactly; it may well run with degrees set by hand."""


class NoRoom(PlanError):
    """A model fits, but its resources did not become free, and no node came, in time."""


class BackendError(AgentCloudError):
    """An endpoint failed a call.

    Attributes:
        endpoint: name of the endpoint, where known.
        kind: the API's error type (`rate_limit_error`, `overloaded_error`, ...).
        status: HTTP status as the API would give it, None where there was none.
        maybe_paid: the request was sent and the answer lost: it may have cost money.
        headers: the response's headers that concern limits, lower case.
        retry_after_s: seconds that the server asked to wait, None if it did not say.
        sends: how often the call was sent before this error was given to its caller.
    """

    default_kind = "api_error"
    default_status: int | None = 500
    retry_after_s: float | None = None
    sends: int = 1

    def __init__(
        self,
        message: str,
        *,
        endpoint: str | None = None,
        kind: str | None = None,
        status: int | None = None,
        maybe_paid: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.kind = kind or self.default_kind
        self.status = status if status is not None else self.default_status
        self.maybe_paid = maybe_paid
        self.headers: dict[str, str] = dict(headers or {})


class RateLimited(BackendError):
    """429: `retry_after_s` is what the server asked for, None if it did not say."""

    default_kind = "rate_limit_error"
    default_status = 429

    def __init__(self, message: str, *, retry_after_s: float | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.retry_after_s = retry_after_s


class Overloaded(BackendError):
    """529 (or 500, 503, 504): the endpoint is in trouble; go elsewhere or wait."""

    default_kind = "overloaded_error"
    default_status = 529

    def __init__(self, message: str, *, retry_after_s: float | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.retry_after_s = retry_after_s


class QueueFull(Overloaded):
    """The scheduler has as many waiting calls as it may: ask again later, nothing was sent."""


class BatchFailed(Overloaded):
    """A call of a batch failed there, or its batch expired; it cost nothing, another may do."""


class ReplicaLost(BackendError):
    """The replica (or its engine) died with the call on it; a local call costs nothing."""


class CallTimeout(BackendError):
    """No answer within `timeout_s` seconds."""

    default_kind = "timeout_error"
    default_status = 504

    def __init__(self, message: str, *, timeout_s: float | None = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.timeout_s = timeout_s


class ConnectionFailed(BackendError):
    """The connection could not be made or was cut before an answer."""

    default_kind = "connection_error"
    default_status = None


class StreamBroken(BackendError):
    """A stream ended before its message did.

    Attributes:
        partial: the message as far as it came, as a dict of the Messages API, or None.
        usage: its usage as far as known, as a dict, or None.
    """

    default_status = None

    def __init__(
        self,
        message: str,
        *,
        partial: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
        **data: Any,
    ) -> None:
        super().__init__(message, **data)
        self.partial = partial
        self.usage = usage


class InvalidRequest(BackendError):
    """400: the request itself is wrong; no endpoint would take it."""

    default_kind = "invalid_request_error"
    default_status = 400


class ContextTooLong(InvalidRequest):
    """The prompt and `max_tokens` exceed the context."""

    def __init__(
        self,
        message: str,
        *,
        context_tokens: int | None = None,
        prompt_tokens: int | None = None,
        **data: Any,
    ) -> None:
        super().__init__(message, **data)
        self.context_tokens = context_tokens
        self.prompt_tokens = prompt_tokens


class Unusable(BackendError):
    """401, 402, 403, 404: the endpoint is unusable until its configuration changes."""

    default_kind = "authentication_error"
    default_status = 401


class Refused(BackendError):
    """The model refused to answer (stop reason `refusal`)."""

    default_kind = "refusal"
    default_status = None


class NoEndpoint(AgentCloudError):
    """No endpoint can serve the request; `why` maps each endpoint to what ruled it out."""

    def __init__(self, message: str, *, why: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.why = dict(why or {})


class RetriesSpent(NoEndpoint):
    """A failed call is not sent again: its endpoints were given their share of later sends."""


class BudgetExceeded(AgentCloudError):
    """A reservation would pass a cap; `scope` names whose."""

    def __init__(self, scope: str, *, used_usd: Decimal, limit_usd: Decimal) -> None:
        super().__init__(
            f"budget of {scope} is used up: {used_usd} of {limit_usd} USD spent or reserved; "
            f"raise its limit to go on"
        )
        self.scope = scope
        self.used_usd = used_usd
        self.limit_usd = limit_usd


class AgentError(AgentCloudError):
    """A user's agent went wrong."""


class ToolFailed(AgentError):
    """A tool raised, timed out, or was called with wrong arguments.

    Attributes:
        tool: its name.
        permanent: the same call would fail the same way.
    """

    def __init__(self, message: str, *, tool: str, permanent: bool = False) -> None:
        super().__init__(message)
        self.tool = tool
        self.permanent = permanent


class ToolServerLost(AgentError):
    """A server of tools could not be started or reached, or died; `server` says which."""

    def __init__(self, message: str, *, server: str) -> None:
        super().__init__(message)
        self.server = server


class OutputInvalid(AgentError):
    """The model's output never satisfied the asked-for type."""

    def __init__(self, message: str, *, attempts: int, usage: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.usage = usage


class TurnLimit(AgentError):
    """An agent loop reached its limit of turns."""

    def __init__(self, message: str, *, turns: int) -> None:
        super().__init__(message)
        self.turns = turns


class TaskError(AgentCloudError):
    """A task of a job failed."""


class TaskCancelled(TaskError):
    """The task was cancelled with its job."""


class AttemptsExhausted(TaskError):
    """Every allowed attempt failed; `last` is the final error's line."""

    def __init__(self, message: str, *, attempts: int, last: str | None = None) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.last = last


class AnswerUnknown(TaskError):
    """A paid call of an earlier run may have been answered, and the answer is lost."""


class RunReplaced(TaskError):
    """A later run of the job has begun: this one writes nothing more."""


class StepMismatch(TaskError):
    """A recorded step does not match what the program asks for now."""


class Parked(BaseException):
    """A task waits for a person: its attempt ends, and another begins once there is an answer.

    No `Exception`, so that an agent's own error handling lets it pass.
    """

    def __init__(self, step: str, question: str, details: object) -> None:
        super().__init__(step, question, details)
        self.step = step
        self.question = question
        self.details = details


def one_line(error: BaseException) -> str:
    """`ValueError: what it said`, one line; our own errors say all by themselves."""
    text = " ".join(str(error).split())[:_ERROR_CHARS]
    if isinstance(error, AgentCloudError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
