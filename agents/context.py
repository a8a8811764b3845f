"""`Context`: what an agent is given to work with."""

from __future__ import annotations

import copy
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeVar, overload

import structlog
from pydantic import BaseModel

from agentcloud.agents.approval import Approval, approval
from agentcloud.agents.asking import Asking, warn_if_cut
from agentcloud.agents.attempts import Attempts
from agentcloud.agents.calls import Calls, RoutedSender
from agentcloud.agents.cascade import AUTO, Cascade
from agentcloud.agents.concurrent import map_ordered
from agentcloud.agents.deadline import Deadline
from agentcloud.agents.defaults import Defaults, Runnable
from agentcloud.agents.fitting import Fitting, LongContext, check_long_context
from agentcloud.agents.loop import LoopLimits, refusal
from agentcloud.agents.mcp_shared import McpServers
from agentcloud.agents.output import output_schema
from agentcloud.agents.params import check_params
from agentcloud.agents.ports import MessagesClient, Sender
from agentcloud.agents.prompt import Image, Prompt, to_messages
from agentcloud.agents.steps import run_step
from agentcloud.agents.tool_base import AnyTool, index_tools
from agentcloud.agents.tool_scope import ToolScope
from agentcloud.agents.usage import Usage
from agentcloud.cluster.clock import Clock, SystemClock
from agentcloud.cluster.contracts import (
    BudgetState,
    Escalation,
    Routing,
)
from agentcloud.cluster.errors import AgentError
from agentcloud.cluster.ports import StepRecorder

T = TypeVar("T", bound=BaseModel)
Item = TypeVar("Item")
R = TypeVar("R")

#: The most agents inside each other: beyond it they are taken to call each other without end.
_MAX_DEPTH = 8
#: Scope of the budget that is above every other.
_FLEET_SCOPE = "fleet"


class Context:
    """One task's way to the models: asks, counts what it used, stays within its limits.

    Args:
        client: makes the calls.
        job_id: the job, for logs.
        task_id: the task, for logs.
        item: the input as it was read.
        budget: path of budget scopes, outermost first.
        deadline_s: seconds from now by which the task should be done; None: no deadline.
        recorder: answers recorded by an earlier attempt, used in place of calls.
        attempts: the task's budget of extra attempts, shared with the layers above.
        budgets: reads the cluster's budgets, for `remaining_usd`.
        routing: what every call gets besides, e.g. the job's priority and policy.
        cascade: what `tier="auto"` is, and what asks use that name no tier of their own.
        servers: MCP servers that other tasks use too; None: each run of an agent has its own.
        clock: the time seam.

    Attributes:
        usage: receipts of every answered call.
        log: logger with the ids bound.
        defaults: what asks use that do not say it themselves; `@agent(...)` sets it.
        path: names of the agents that run, the outermost first.
    """

    def __init__(
        self,
        client: MessagesClient,
        *,
        job_id: str = "",
        task_id: str = "",
        item: Any = None,
        budget: tuple[str, ...] = (),
        deadline_s: float | None = None,
        recorder: StepRecorder | None = None,
        attempts: Attempts | None = None,
        budgets: Callable[[], Awaitable[Sequence[BudgetState]]] | None = None,
        routing: Routing | None = None,
        cascade: Cascade | None = None,
        servers: McpServers | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.job_id = job_id
        self.task_id = task_id
        self.item = item
        self.attempts = attempts if attempts is not None else Attempts()
        self.usage = Usage()
        self.log = structlog.get_logger().bind(job=job_id, task=task_id)
        self.defaults = Defaults()
        self.path: tuple[str, ...] = ()
        self._client = client
        self._cascade = cascade
        self._servers = servers
        self._calls = Calls(client, recorder, self.attempts, self.usage)
        self._budget = budget
        self._base = routing or Routing()
        self._budgets = budgets
        self._clock = clock or SystemClock()
        self._deadline = Deadline(self._clock).within(deadline_s)

    def __repr__(self) -> str:
        return f"<Context {self.job_id or '-'}/{self.task_id or '-'}, {self.usage.calls} calls>"

    @overload
    async def ask(self, prompt: Prompt, *, output: type[T], **settings: Any) -> T: ...
    @overload
    async def ask(self, prompt: Prompt, *, output: None = None, **settings: Any) -> str: ...
    async def ask(
        self,
        prompt: Prompt,
        *,
        output: type[T] | None = None,
        system: str | None = None,
        tier: str | Cascade | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        tools: Sequence[AnyTool] | None = None,
        images: Sequence[Image] = (),
        deadline_s: float | None = None,
        repairs: int = 2,
        max_turns: int | None = None,
        max_total_tokens: int | None = None,
        max_usd: Decimal | None = None,
        long_context: LongContext | None = None,
        cache: bool | None = None,
        **params: Any,
    ) -> T | str:
        """Ask a model, running the tools it calls, until it answers.

        With `output`, the answer is a validated object of that model: decoding is constrained by
        its schema where the endpoint can, the rest is checked after; an invalid answer is shown to
        the model again, and one cut short is asked for with twice the tokens. Without, it is the
        text; text that `max_tokens` cut off is returned as it is, with a warning in the log. Every
        error carries what the ask had used, at `.spent`.

        Args:
            prompt: text, content blocks, or whole messages.
            output: pydantic model of the answer.
            system: system prompt.
            tier: `small`, `large` or a model's name, in place of the agent's. `auto`: cheap first:
                the fleet's tiers by price until an answer validates (and passes what
                `agentcloud tune` found); a `Cascade`: tiers and checks of your own.
            model: a model's name as the API has it; mapped by `aliases:` of fleet.yaml.
            max_tokens: the most tokens of one answer.
            temperature: 0 is the most likely answer.
            tools: functions that the model may call, in place of the agent's; `[]`: none.
            images: files, bytes or URLs, put before the text of the last message.
            deadline_s: seconds from now by which the answer should be whole; a loop begins no
                further turn after it.
            repairs: how often to ask again for a valid `output`.
            max_turns: the most answers of the loop.
            max_total_tokens: the most tokens of the loop, prompts and answers together.
            max_usd: the most money of the loop.
            long_context: what becomes of the oldest turns of a conversation that is too long:
                `truncate` or `summarise`, in place of the agent's.
            cache: whether the response cache may answer, in place of the agent's; samples of a
                cascade's `agreement` are never taken from it.
            **params: further parameters of the Messages API, e.g. `stop_sequences`.

        Raises:
            OutputInvalid: no answer satisfied `output`.
            Refused: the model refused.
            TurnLimit: the loop reached its turns, tokens or time.
            BudgetExceeded: a budget is used up.
            AttemptsExhausted: the task's extra attempts are used up.
            AgentError: `output`, a tool, an image or `long_context` cannot be used.
            ToolServerLost: an MCP server of the agent cannot be started, or died.
        """
        if output is not None:
            output_schema(output)  # what cannot be asked for costs no call
        usage = self.usage.part()
        deadline = self._deadline.within(deadline_s)
        ours = self._with(usage, deadline)
        calls, scope = ours._calls, ToolScope(self.attempts, self._clock, ours.run)
        offered = index_tools(await self._own_tools() if tools is None else tools)
        by_name = {name: tool.within(scope) for name, tool in offered.items()}
        chosen = await self._tier_of(tier, model)
        one_tier = chosen if isinstance(chosen, str) else None
        request = self._request(prompt, images, one_tier, model, max_tokens, params)
        given = {"system": system, "temperature": temperature}
        request |= {key: value for key, value in given.items() if value is not None}
        turns = max_turns or self.defaults.max_turns
        limits = LoopLimits(turns, max_total_tokens, max_usd, deadline)
        long = self.defaults.long_context if long_context is None else long_context
        fitting = Fitting(check_long_context(long), self.log)
        said = (cache, self.defaults.cache, self._base.cache)
        may_cache = next((each for each in said if each is not None), None)
        if isinstance(chosen, Cascade) and chosen.agreement is not None:
            may_cache = False  # all samples would be one
        asking = Asking(output, by_name, limits, repairs, usage, fitting, self.log)

        def sender(
            tier: str | None, *, mean_logprob: bool = False, escalated: Escalation | None = None
        ) -> Sender:
            routing = replace(self._routing(tier), mean_logprob=mean_logprob, cache=may_cache)
            if isinstance(chosen, Cascade) and tier != chosen.tiers[-1]:
                # Its fallback may be the next tier, which would then be asked the same again.
                routing = replace(routing, fallback=False)
            return RoutedSender(calls, routing, deadline, escalated)

        value: T | str
        with usage.told_by_errors():
            if isinstance(chosen, Cascade):
                value = await asking.of_cascade(chosen, sender, request)
            else:
                value = await asking.of_tier(sender(chosen), request)
        return value

    async def stream(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        tier: str | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        images: Sequence[Image] = (),
        deadline_s: float | None = None,
        **params: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the text of an answer as it comes: `async for piece in ctx.stream(...)`.

        Leaving the loop early aborts the call; wrap it in `contextlib.aclosing` to abort at once.
        Arguments are those of `ask`.

        Raises:
            Refused: the model refused; what came before was yielded.
            StreamBroken: the stream ended before the answer did.
        """
        chosen = await self._tier_of(tier, model)
        if isinstance(chosen, Cascade):
            raise AgentError(
                "stream: a cascade checks answers that are whole; name a tier, or use ask"
            )
        request = self._request(prompt, images, chosen, model, max_tokens, params)
        if system is not None:
            request["system"] = system
        left_s = self._deadline.within(deadline_s).left_s()
        routing = replace(self._routing(chosen), deadline_s=left_s)
        calls = self._calls.stream(request, routing)
        async with aclosing(calls) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield piece
                else:
                    message = piece
        if message.stop_reason == "refusal":
            raise refusal(message)
        warn_if_cut(self.log, message, request["max_tokens"])

    async def map(
        self,
        function: Callable[[Item], Awaitable[R]],
        items: Iterable[Item],
        *,
        concurrency: int = 16,
    ) -> list[R]:
        """Apply an async function to every item at once; results in the items' order.

        The first error cancels what still runs and is raised as it is. To keep going, catch
        inside `function` and return what tells the failure.

        Args:
            function: async function of one item.
            items: any iterable.
            concurrency: the most items at once.
        """
        return await map_ordered(function, items, concurrency=concurrency)

    async def run(self, agent: Runnable[R], item: Any) -> R:
        """Run another agent within this task: `await ctx.run(researcher, {"topic": "tides"})`.

        It has its own settings (tier, tools, ...). Budget, deadline, extra attempts, recorded
        answers and the count of what was used are this task's. Its exceptions come through.

        Args:
            agent: made by `@agent`.
            item: its input, validated as a row would be.

        Raises:
            AgentError: the item is not of the agent's type, or agents run each other without end.
        """
        if len(self.path) >= _MAX_DEPTH:
            raise AgentError(
                f"agent {agent.name}: {_MAX_DEPTH} agents run inside each other already "
                f"({' -> '.join(self.path)}); let one of them answer by itself"
            )
        inner = self._with(self.usage.part(), self._deadline)
        inner.item, inner.defaults, inner.path = item, agent.defaults, (*self.path, agent.name)
        inner.log = self.log.bind(agent=agent.name)
        async with inner.serving():
            return await agent(inner, item)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Agents with `mcp=` run in here: servers that nobody shares end with it."""
        if self._servers is not None:
            yield
            return
        async with McpServers() as servers:
            self._servers = servers
            try:
                yield
            finally:
                self._servers = None

    @overload
    async def step(
        self, function: Callable[..., Awaitable[R]], /, *args: Any, **kwargs: Any
    ) -> R: ...
    @overload
    async def step(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> R: ...
    async def step(
        self, function: Callable[..., Any], /, *args: Any, name: str | None = None, **kwargs: Any
    ) -> Any:
        """Run a function once in the task's life: its result is recorded, like a model's answer.

        When the task is started again (its worker died, the job is resumed), a step with the same
        name and arguments gives what is recorded. For what must not happen twice, or takes long.

        Args:
            function: async, or sync (run in a thread); what it returns must be JSON-able, and comes
                back as an object of the type that it is annotated to return.
            *args: its arguments, JSON-able.
            name: of the step; the function's by default.
            **kwargs: the same by name.

        Raises:
            AgentError: it has no name, or what it takes or returns is no JSON.
        """
        return await run_step(self._calls, function, args, kwargs, name)

    async def approve(self, question: str, *, details: Any = None) -> Approval:
        """Let a person decide; until then the task is parked and holds no worker.

        The task ends here and is started again when there is an answer: what it has asked and done
        by then is recorded and not repeated. `agentcloud approvals JOB` lists what is asked,
        `agentcloud approve JOB TASK` answers.

        Args:
            question: what is asked, for a person to read.
            details: what they should see to decide, JSON-able.

        Raises:
            AgentError: `details` is no JSON, or the agent runs outside of a job.
        """
        return await approval(self._calls, question, details)

    async def remaining_usd(self) -> Decimal | None:
        """Money left for this task: the least over its budgets, reservations taken off.

        None when no budget above it has a limit, or when the context has no way to ask.
        """
        if self._budgets is None:
            return None
        # A budget's state names its whole path.
        depths = range(1, len(self._budget) + 1)
        ours = {_FLEET_SCOPE, *("/".join(self._budget[:depth]) for depth in depths)}
        left = [
            state.limit_usd - state.spent_usd - state.reserved_usd - state.unknown_usd
            for state in await self._budgets()
            if state.scope in ours and state.limit_usd is not None
        ]
        return max(Decimal(0), min(left)) if left else None

    async def _own_tools(self) -> list[AnyTool]:
        tools, servers = list(self.defaults.tools), self.defaults.mcp
        if servers:
            assert self._servers is not None, "run_agent and ctx.run see to it"
            tools += await self._servers.tools(servers)
        return tools

    def _request(
        self,
        prompt: Prompt,
        images: Sequence[Image],
        tier: str | None,
        model: str | None,
        max_tokens: int | None,
        params: dict[str, Any],
    ) -> dict[str, Any]:
        check_params(params)
        return {
            **params,
            "model": model or tier,
            "max_tokens": max_tokens or self.defaults.max_tokens,
            "messages": to_messages(prompt, images),
        }

    async def _tier_of(self, tier: str | Cascade | None, model: str | None) -> str | Cascade | None:
        """The tier or cascade of an ask; None: its model alone decides.

        Raises:
            AgentError: a cascade that this fleet cannot run.
        """
        # A model named without a tier is the caller's choice, so the agent's tier stays out.
        if tier is None and model is not None:
            return None
        named = tier or self._cascade or self.defaults.tier
        if isinstance(named, str) and named != AUTO:
            return named
        fleet = await self._client.tiers()
        if not isinstance(named, Cascade):
            named = self._cascade or Cascade(fleet.ordered)
        named.check_on(fleet)
        return named

    def _with(self, usage: Usage, deadline: Deadline) -> Context:
        """The same task, whose calls count in `usage` and end by `deadline`."""
        other = copy.copy(self)
        other.usage, other._deadline = usage, deadline
        other._calls = self._calls.counted_in(usage)
        return other

    def _routing(self, tier: str | None) -> Routing:
        return replace(self._base, tier=tier, budget=self._budget)
