"""One vLLM engine that speaks the Messages API, through vLLM's own handler.

The handler is in engine_handler.py; the two are the sole importers of vllm. Errors are translated
here, once.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
from argparse import Namespace
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from pydantic import ValidationError
from starlette.datastructures import State
from starlette.requests import Request
from vllm.config.kv_events import KVEventsConfig
from vllm.distributed.kv_events import KVEventBatch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesResponse,
)
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.envs import enable_envs_cache
from vllm.exceptions import VLLMClientError
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from agentcloud.cluster.contracts import LoadReport, Params, Timings
from agentcloud.cluster.engine_blocks import NO_PROMPT, Prompt
from agentcloud.cluster.engine_events import BlockEvents
from agentcloud.cluster.engine_fork import fork_server
from agentcloud.cluster.engine_handler import Messages, MessagesRequest
from agentcloud.cluster.engine_load import LoadMeter
from agentcloud.cluster.engine_requests import check_request, hold_forced_calls
from agentcloud.cluster.engine_settings import EngineSettings
from agentcloud.cluster.errors import (
    BackendError,
    ContextTooLong,
    InvalidRequest,
    Overloaded,
    ReplicaLost,
)
from agentcloud.cluster.prefix import Change

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        message: the Messages API's JSON, as text.
        timings: as vLLM measured them, from the request's arrival at the engine.
    """

    message: bytes
    timings: Timings


class LocalEngine:
    """A running engine. Make one with `await LocalEngine.start(settings)`."""

    def __init__(
        self,
        settings: EngineSettings,
        engine: AsyncLLM,
        handler: Messages,
        meter: LoadMeter,
        events: BlockEvents | None = None,
    ) -> None:
        self.settings = settings
        self._engine = engine
        self._handler = handler
        self._meter = meter
        self._events = events
        self._counter = itertools.count()
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}

    def __repr__(self) -> str:
        return f"LocalEngine({self.settings.model!r}, {len(self._tasks)} calls)"

    @classmethod
    async def start(cls, settings: EngineSettings) -> LocalEngine:
        """Load the model; takes tens of seconds. Sets the settings' environment in this process.

        Raises:
            ReplicaLost: the engine did not come up.
        """
        os.environ.update(settings.env)
        if settings.forks:
            # vLLM offers spawn and fork only; see engine_fork.py for why neither will do.
            engine_utils.get_mp_context = fork_server
        meter = LoadMeter()

        class Stats(StatLoggerBase):  # type: ignore[misc]
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(
                self,
                scheduler_stats: Any,
                iteration_stats: Any,
                mm_cache_stats: Any = None,
                engine_idx: int = 0,
            ) -> None:
                meter.record(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                pass

        args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        for key, value in settings.args.items():
            if value is not None:
                setattr(args, key, value)
        events = None
        if settings.kv_events:
            events = BlockEvents(msgspec.msgpack.Decoder(KVEventBatch).decode)
            args.kv_events_config = KVEventsConfig(
                enable_kv_cache_events=True, publisher="zmq", endpoint=events.address
            )
        engine_args = AsyncEngineArgs.from_cli_args(args)
        engine = AsyncLLM.from_vllm_config(
            engine_args.create_engine_config(),
            stat_loggers=[Stats],
            disable_log_stats=True,
        )
        try:
            # Its renderer and model list are made by vLLM's own server set-up.
            args.structured_outputs_config = engine.vllm_config.structured_outputs_config
            state = State()
            await init_app_state(engine, state, args, supported_tasks=("generate",))
            handler = Messages(
                engine,
                state.openai_serving_models,
                args.response_role,
                online_renderer=state.online_renderer,
                request_logger=None,
                chat_template=None,
                chat_template_content_format=args.chat_template_content_format,
                reasoning_parser=args.structured_outputs_config.reasoning_parser,
                enable_auto_tools=args.enable_auto_tool_choice,
                tool_parser=args.tool_call_parser,
                enable_prompt_tokens_details=True,
            )
        except BaseException:
            engine.shutdown()
            raise
        return cls(settings, engine, handler, meter, events)

    def own_process(self) -> None:
        """Tune this process to serving this engine: for one that does nothing else.

        As vLLM does in its engine's process: its settings are read from the environment once
        instead of at each use, and what is loaded is no longer looked through for garbage.
        """
        enable_envs_cache()
        freeze_gc_heap()

    @property
    def is_dead(self) -> bool:
        """The engine's process, or one of its workers, is gone; it never comes back."""
        return bool(self._engine.errored)

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together."""
        return int(self._engine.model_config.max_model_len)

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the KV cache holds; None where the engine does not say."""
        cache = self._engine.vllm_config.cache_config
        if not cache.num_gpu_blocks or not cache.block_size:
            return None
        # One block is never used: it stands for what is not there.
        return int((cache.num_gpu_blocks - 1) * cache.block_size)

    async def create(self, params: Params, call_id: str, prompt: Prompt = NO_PROMPT) -> Reply:
        """Serve one call; cancelling it aborts it in the engine.

        Raises:
            BackendError: as the Messages API would say it.
        """
        with self._calling(call_id, prompt) as request_id:
            outcome = await self._send(params, request_id, stream=False)
            if not isinstance(outcome, AnthropicMessagesResponse):
                raise BackendError("the engine answered a unary call with a stream")
            outcome.id = f"msg_{call_id}"
            message = outcome.model_dump_json(exclude_none=True).encode()
            if params.get("mean_logprob"):
                message = self._with_logprob(message, request_id)
            return Reply(message, self._timings(request_id))

    async def stream(
        self, params: Params, call_id: str, prompt: Prompt = NO_PROMPT
    ) -> AsyncGenerator[tuple[str, Timings | None], None]:
        """Serve one call as the JSON of the API's events; the last one comes with the timings.

        Raises:
            BackendError: as the Messages API would say it, also in mid-stream.
        """
        with self._calling(call_id, prompt) as request_id:
            events = await self._send(params, request_id, stream=True)
            async for text in events:
                # Most are text deltas, which pass through unread.
                name, data = text.split("\n", 2)[:2]
                kind, data = name.removeprefix("event: "), data.removeprefix("data: ")
                if kind == "error":
                    raise self._stream_error(request_id, json.loads(data))
                if kind == "message_start":
                    event = json.loads(data)
                    event["message"]["id"] = f"msg_{call_id}"
                    data = json.dumps(event)
                yield data, self._timings(request_id) if kind == "message_stop" else None

    async def count_tokens(self, params: Params) -> int:
        """Tokens of the prompt.

        Raises:
            InvalidRequest: the request is not one of the Messages API, or not served here.
        """
        check_request(params, images=self._images)
        known = AnthropicCountTokensRequest.model_fields
        fields = {key: value for key, value in params.items() if key in known}
        try:
            request = AnthropicCountTokensRequest(**fields | {"model": self.settings.model})
            answer = await self._handler.count_tokens(request)
        except Exception as error:
            raise self._translated(error) from error
        if isinstance(answer, ErrorResponse):
            raise _from_response(answer, self.context_tokens)
        return int(answer.input_tokens)

    def abort(self, call_ids: Iterable[str]) -> None:
        """Cancel calls by id, in the engine too; unknown ids are no error."""
        for call_id in call_ids:
            for task in self._tasks.get(call_id, ()):
                task.cancel()

    def load(self) -> LoadReport:
        """The load as last reported; no round trip to the engine."""
        return self._meter.report(
            unfinished=self._engine.get_num_unfinished_requests(),
            prompt_tokens_queued=self._engine.get_num_queued_tokens(),
        )

    def cached(self, *, anew: bool) -> Change | None:
        """What of the prompts' chunks the cache holds now and did not before, and the reverse.

        Args:
            anew: all that it holds.

        Returns:
            The change; None where the engine does not tell.
        """
        return None if self._events is None else self._events.change(anew=anew)

    async def shutdown(self) -> None:
        """Abort all calls and end the engine's processes."""
        for tasks in self._tasks.values():
            for task in tasks:
                task.cancel()
        if self._events is not None:
            self._events.close()
        await asyncio.to_thread(self._engine.shutdown)

    @property
    def _images(self) -> bool:
        return bool(self._engine.model_config.is_multimodal_model)

    @contextmanager
    def _calling(self, call_id: str, prompt: Prompt) -> Iterator[str]:
        """Register the running task under `call_id`; gives the id that the engine knows it by."""
        if not self._engine.get_num_unfinished_requests():
            self._meter.woke()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("calls are made from asyncio tasks")
        # A call may come again while its first send is still being aborted: never the same id.
        request_id = f"{call_id}.{next(self._counter)}"
        self._tasks.setdefault(call_id, set()).add(task)
        if prompt.prefix and self._events is not None:
            saw = functools.partial(self._events.blocks.saw, prompt)
            self._handler.on_read[_engine_id(request_id)] = saw
        try:
            yield request_id
        finally:
            tasks = self._tasks[call_id]
            tasks.discard(task)
            if not tasks:
                del self._tasks[call_id]
            self._handler.forget(_engine_id(request_id))

    async def _send(self, params: Params, request_id: str, *, stream: bool) -> Any:
        """Hand a request to vLLM's handler."""
        check_request(params, images=self._images)
        http = Request({"type": "http", "headers": [(b"x-request-id", request_id.encode())]})
        try:
            fields = hold_forced_calls(params) | {"model": self.settings.model, "stream": stream}
            if isinstance(limit := fields.get("max_tokens"), int):
                # A program written for a larger model may ask for more than this one's context:
                # it is a most, so the context bounds it.
                fields["max_tokens"] = min(limit, self.context_tokens)
            outcome = await self._handler.create_messages(MessagesRequest(**fields), http)
        except Exception as error:
            raise self._translated(error) from error
        if isinstance(outcome, ErrorResponse):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # vLLM answers a cancelled request instead of letting the cancellation through.
                raise asyncio.CancelledError
            raise _from_response(outcome, self.context_tokens)
        return outcome

    def _with_logprob(self, message: bytes, request_id: str) -> bytes:
        """The message with `usage.mean_logprob`, a field that the API does not have."""
        data = json.loads(message)
        data["usage"]["mean_logprob"] = self._handler.mean_logprob(_engine_id(request_id))
        return json.dumps(data).encode()

    def _timings(self, request_id: str) -> Timings:
        final = self._handler.final.get(_engine_id(request_id))
        stats = final.metrics if final is not None else None
        if stats is None:
            return Timings()
        return Timings(
            ttft_s=stats.first_token_latency,
            generation_s=stats.last_token_ts - stats.first_token_ts,
            engine_queue_s=stats.scheduled_ts - stats.queued_ts,
        )

    def _stream_error(self, request_id: str, event: dict[str, Any]) -> BackendError:
        cause = self._handler.failure.get(_engine_id(request_id))
        if cause is not None:
            return self._translated(cause)
        return BackendError(f"{self.settings.model}: {event['error']['message']}")

    def _translated(self, error: Exception) -> BackendError:
        """VLLM's exceptions -> ours."""
        if isinstance(error, BackendError):
            return error
        if isinstance(error, EngineDeadError) or self.is_dead:
            return ReplicaLost(f"{self.settings.model}: the engine died with the call on it")
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            what = first["msg"].removeprefix("Value error, ")
            return InvalidRequest(f"{where}: {what}" if where else what)
        if isinstance(error, VLLMClientError | ValueError | TypeError):
            return _invalid(str(error), self.context_tokens)
        status = getattr(error, "http_status", None) or getattr(error, "status_code", None)
        if status == 503:
            return Overloaded(f"{self.settings.model}: {error}")
        return BackendError(f"{self.settings.model}: {type(error).__name__}: {error}")


def _engine_id(request_id: str) -> str:
    """VLLM's chat layer prefixes the ids that it is given."""
    return f"chatcmpl-{request_id}"


def _from_response(response: ErrorResponse, context_tokens: int) -> BackendError:
    """VLLM's error answer -> ours."""
    message, status = response.error.message, int(response.error.code)
    if status == 503:
        return Overloaded(message)
    if status >= 500:
        return BackendError(message, status=status)
    return _invalid(message, context_tokens)


def _invalid(message: str, context_tokens: int) -> InvalidRequest:
    # vLLM tells a prompt that is too long by its wording alone.
    if "maximum context length" in message:
        return ContextTooLong(message, context_tokens=context_tokens)
    if "structural tag" in message:
        return InvalidRequest(
            "tools: an input_schema is no JSON schema that an answer can be held to; mend it, or "
            f"give the tool `strict: false` to have its input unchecked ({message})"
        )
    return InvalidRequest(message)
