"""One attempt at one task: run the agent, judge how it ended, sum up its calls."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import anthropic
import structlog
from pydantic_core import PydanticSerializationError, to_jsonable_python

from agentcloud.agents.agent import Agent, Context, run_agent
from agentcloud.agents.attempts import Attempts
from agentcloud.agents.mcp_shared import McpServers
from agentcloud.agents.ports import MessagesClient
from agentcloud.cluster.contracts import Receipt, Routing
from agentcloud.cluster.errors import (
    BackendError,
    BudgetExceeded,
    InvalidRequest,
    Parked,
    Refused,
    Unusable,
    one_line,
)
from agentcloud.cluster.explain import considered_as_dict
from agentcloud.cluster.logs import bound_ids
from agentcloud.tasks.budgets import Budgets
from agentcloud.tasks.ledger_client import LedgerPort
from agentcloud.tasks.recorder import TaskRecorder
from agentcloud.tasks.spec import Asked, JobSpec, TaskEnd, TaskInput, TaskResult

log = structlog.get_logger()


async def attempt_task(
    agent: Agent[Any],
    client: MessagesClient,
    spec: JobSpec,
    task: TaskInput,
    budgets: Budgets,
    ledger: LedgerPort,
    servers: McpServers,
) -> TaskResult:
    """Run an agent on one input; never raises, a cancellation too becomes an end.

    The task's own budget, where it has one, keeps what earlier attempts spent; it is closed after
    the last attempt (that of a task whose worker died or was stopped: with the job's).
    Every line logged meanwhile carries the job's id and the task's.
    """
    with bound_ids(job=spec.job_id, task=task.id):
        result = await _attempt(agent, client, spec, task, budgets, ledger, servers)
        if spec.task_budget_usd is not None and _is_last(result, spec, task):
            await budgets.close(budget_path(spec, task.id))
        return result


async def _attempt(
    agent: Agent[Any],
    client: MessagesClient,
    spec: JobSpec,
    task: TaskInput,
    budgets: Budgets,
    ledger: LedgerPort,
    servers: McpServers,
) -> TaskResult:
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    started_s = time.monotonic()
    # Every attempt at the task spends from the one budget: a restart gets what is left.
    attempts = Attempts(spec.extra_attempts)
    attempts.charge(task.extra_used)
    path = budget_path(spec, task.id)
    recorder = TaskRecorder(ledger, spec.job_id, task.id, spec.on_unknown)
    context = Context(
        client,
        job_id=spec.job_id,
        task_id=task.id,
        item=task.item,
        budget=path,
        deadline_s=_deadline_s(spec),
        recorder=recorder,
        attempts=attempts,
        budgets=budgets.states,
        routing=Routing(kind=spec.kind, priority=spec.priority),
        cascade=spec.cascade.to_cascade() if spec.cascade is not None else None,
        servers=servers,
    )
    output: Any = None
    error: str | None = None
    kind: str | None = None
    asked: Asked | None = None
    try:
        async with asyncio.timeout(spec.task_timeout_s) as limit:
            if task.attempt > 1 or task.was_lost or task.was_parked:
                await recorder.recall(was_lost=task.was_lost)
            if spec.task_budget_usd is not None:
                await budgets.open(path, spec.task_budget_usd)
            output = json_output(await run_agent(agent, context, task.item))
        end = TaskEnd.DONE
    except Parked as parked:
        end, error, kind = TaskEnd.PARKED, parked.question, "Parked"
        asked = Asked(task.id, parked.step, parked.question, parked.details)
    except asyncio.CancelledError:
        end, error, kind = TaskEnd.CANCELLED, "cancelled", "TaskCancelled"
    except Exception as raised:
        if isinstance(raised, TimeoutError) and limit.expired():
            end, error, kind = TaskEnd.FAILED, _too_slow(spec), "TaskTimeout"
        else:
            end, error, kind = judge(raised, spec, task.id), one_line(raised), type(raised).__name__
            log.warning("task attempt failed", exc_info=raised)
    return TaskResult(
        id=task.id,
        end=end,
        duration_s=time.monotonic() - started_s,
        started_at=started_at,
        output=output,
        error=error,
        error_kind=kind,
        calls=tuple(call_summary(receipt) for receipt in context.usage.receipts),
        extra_used=attempts.used,
        reused=recorder.reused,
        resent=recorder.resent,
        asked=asked,
    )


def _is_last(result: TaskResult, spec: JobSpec, task: TaskInput) -> bool:
    # As the board will decide.
    if result.end is TaskEnd.PARKED:
        return False
    return (
        result.end is not TaskEnd.PASSING
        or task.attempt >= spec.attempts
        or result.extra_used >= spec.extra_attempts
    )


def budget_path(spec: JobSpec, task_id: str) -> tuple[str, ...]:
    """The budgets that a task's calls are charged to, outermost first."""
    if spec.task_budget_usd is None:
        return (spec.budget_scope,)
    return (spec.budget_scope, f"task:{spec.job_id}/{task_id}")


def judge(error: BaseException, spec: JobSpec, task_id: str) -> TaskEnd:
    """What an agent's exception means for its task.

    Three cases: a budget above the task is used up: the job stops; an endpoint failed in a way
    that may pass: worth another attempt; everything else (the agent's own error, a request that no
    endpoint takes) would only be paid for again.
    """
    if isinstance(error, BudgetExceeded):
        of_task = error.scope == budget_path(spec, task_id)[-1] and error.scope.startswith("task:")
        return TaskEnd.FAILED if of_task else TaskEnd.BUDGET
    if isinstance(error, BackendError):
        lasting = isinstance(error, (InvalidRequest, Refused, Unusable))
        return TaskEnd.FAILED if lasting else TaskEnd.PASSING
    passing = (
        anthropic.APIConnectionError,
        anthropic.RateLimitError,
        anthropic.InternalServerError,
    )
    return TaskEnd.PASSING if isinstance(error, passing) else TaskEnd.FAILED


def json_output(value: Any) -> Any:
    """An agent's return value as JSON (pydantic models, dataclasses, dates, ... are turned).

    Raises:
        TypeError: it cannot be JSON.
    """
    try:
        return to_jsonable_python(value, inf_nan_mode="null")
    except PydanticSerializationError as error:
        raise TypeError(f"the agent's return value is no JSON: {error}") from None


def call_summary(receipt: Receipt) -> dict[str, Any]:
    """A call as the results file shows it; None where nothing was measured.

    `cached` is there where no call was made for it, `batch` where it came by one, `saved_usd` where
    a hosted model's cache was used; what only cascades have (`mean_logprob`, `agreement`,
    `escalated_from` and what goes with it) is there where it is.
    """
    summary: dict[str, Any] = {
        "call": receipt.call_id,
        "endpoint": receipt.endpoint,
        "model": receipt.model,
        "reason": receipt.reason,
        "considered": [considered_as_dict(each) for each in receipt.considered],
        "attempts": receipt.attempts,
        "input_tokens": receipt.usage.input_tokens,
        "cache_write_tokens": receipt.usage.cache_write_tokens,
        "cache_read_tokens": receipt.usage.cache_read_tokens,
        "output_tokens": receipt.usage.output_tokens,
        "cost_usd": receipt.cost_usd,
        "queue_s": receipt.timings.queue_s,
        "ttft_s": receipt.timings.ttft_s,
        "total_s": receipt.timings.total_s,
    }
    if receipt.mean_logprob is not None:
        summary["mean_logprob"] = receipt.mean_logprob
    if receipt.saved_usd:
        summary["saved_usd"] = format(receipt.saved_usd, "f")
    if receipt.agreement is not None:
        summary["agreement"] = receipt.agreement
    if receipt.valid is not None:
        summary["valid"] = receipt.valid
    if receipt.batch:
        summary["batch"] = True
    if receipt.cached:
        summary["cached"] = True
    if (escalated := receipt.escalated) is not None:
        spent_usd = escalated.spent_usd
        summary |= {
            "escalated_from": list(escalated.tiers),
            "escalation": "; ".join(
                f"{tier}: {why}"
                for tier, why in zip(escalated.tiers, escalated.reasons, strict=True)
            ),
            # Of calls that have lines of their own: not part of this one's cost.
            "spent_elsewhere_usd": None if spent_usd is None else format(spent_usd, "f"),
        }
    return summary


def _deadline_s(spec: JobSpec) -> float | None:
    """What a task's calls are told: an attempt that is cut off sooner has no longer."""
    if spec.deadline_s is None or spec.task_timeout_s is None:
        return spec.deadline_s
    return min(spec.deadline_s, spec.task_timeout_s)


def _too_slow(spec: JobSpec) -> str:
    return f"took longer than --task-timeout {spec.task_timeout_s:g} s"
