"""vLLM's Messages handler with what it lacks: timings of each request, and calls that were cut off.

With engine.py the sole importer of vllm.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import jiter
from vllm.entrypoints.anthropic.protocol import (
    AnthropicMessagesRequest,
    AnthropicMessagesResponse,
)
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.generate.base.protocol import (
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.outputs import RequestOutput
from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser


@ToolParserManager.register_module("hermes", force=True)
class _Hermes(Hermes2ProToolParser):  # type: ignore[misc]  # vllm is not typed for us
    """vLLM's parser, which gives up every call of an answer, whole ones too, if one was cut off.

    Its streaming half does not; this reads a unary answer by the same rules.
    """

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """Take the calls from an answer, the last one as far as it got."""
        calls = []
        for text, whole in self._extract_tool_call_jsons(model_output):
            call = _whole_call(text) if whole else self._cut_call(text)
            if call is None:
                break
            calls.append(ToolCall(type="function", function=call))
        before = model_output.split(self.tool_call_start_token, 1)[0] if calls else model_output
        return ExtractedToolCallInformation(
            tools_called=bool(calls), tool_calls=calls, content=before or None
        )

    def _cut_call(self, text: str) -> FunctionCall | None:
        """A call as far as it got; nothing before its name is known."""
        name = self._extract_tool_name(text)
        if name is None:
            return None
        return FunctionCall(name=name, arguments=self._extract_tool_args(text, False) or "")


def _whole_call(text: str) -> FunctionCall | None:
    """A call's JSON, or nothing where a model wrote something else between the tags."""
    try:
        call = json.loads(text)
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        return FunctionCall(name=call["name"], arguments=arguments)
    except (ValueError, KeyError, TypeError):
        return None


class MessagesRequest(AnthropicMessagesRequest):  # type: ignore[misc]  # vllm is not typed for us
    """vLLM's request, with what the Messages API lacks.

    Attributes:
        mean_logprob: keep the log-probabilities of the answer's tokens, for `mean_logprob`.
    """

    mean_logprob: bool = False


class Messages(AnthropicServingMessages):  # type: ignore[misc]  # vllm is not typed for us
    """vLLM's handler, with the statistics of each request and unguarded JSON guarded.

    Attributes:
        final: request id -> the last output of the engine, for whoever started the request.
        failure: request id -> what the engine raised in the middle of it.
        on_read: request id -> what to call with its prompt's tokens once they are read.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.final: dict[str, RequestOutput] = {}
        self.failure: dict[str, Exception] = {}
        self.on_read: dict[str, Callable[[Sequence[int]], None]] = {}

    def forget(self, request_id: str) -> None:
        """Drop what was kept of a request."""
        self.final.pop(request_id, None)
        self.failure.pop(request_id, None)
        self.on_read.pop(request_id, None)

    def mean_logprob(self, request_id: str) -> float | None:
        """Mean log-probability of an ended request's tokens, the one that ends it included.

        As the model gave them: after the grammar, which makes the tokens that it forces certain,
        and before temperature. None where it was not asked for, or nothing was generated.
        """
        final = self.final.get(request_id)
        output = final.outputs[0] if final is not None else None
        if output is None or output.cumulative_logprob is None or not output.token_ids:
            return None
        # A certain token's may come a hair above 0, from rounding.
        return min(0.0, float(output.cumulative_logprob) / len(output.token_ids))

    @classmethod
    def to_chat_completion_request(cls, anthropic_request: Any, **kwargs: Any) -> Any:
        """Convert a request; its wish for log-probabilities comes along."""
        request = super().to_chat_completion_request(anthropic_request, **kwargs)
        # With no alternatives to each token: those of the answer's own are enough.
        request.logprobs = bool(getattr(anthropic_request, "mean_logprob", False))
        return request

    async def chat_completion_full_generator(
        self, request: Any, outputs: Any, request_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Keep the last output, which carries the statistics."""
        request.logprobs = False  # they are read off the output; as text nobody wants them
        watched = self._watch(request_id, outputs)
        return await super().chat_completion_full_generator(
            request, watched, request_id, *args, **kwargs
        )

    def chat_completion_stream_generator(
        self, request: Any, outputs: Any, request_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Keep the last output, which carries the statistics."""
        request.logprobs = False
        watched = self._watch(request_id, outputs)
        return super().chat_completion_stream_generator(
            request, watched, request_id, *args, **kwargs
        )

    async def _watch(
        self, request_id: str, outputs: AsyncIterator[RequestOutput]
    ) -> AsyncIterator[RequestOutput]:
        try:
            async for output in outputs:
                if (told := self.on_read.pop(request_id, None)) is not None:
                    told(output.prompt_token_ids or ())
                if output.finished:
                    self.final[request_id] = output
                yield output
        except Exception as error:
            self.failure[request_id] = error
            raise

    def messages_full_converter(
        self, generator: ChatCompletionResponse
    ) -> AnthropicMessagesResponse:
        """Convert an answer; tool arguments that were cut off come as far as they got."""
        choice = generator.choices[0]
        final = self.final.get(generator.id)
        if final is not None and final.outputs[0].finish_reason == "length":
            # For a call that was its model's own choice vLLM says "tool_calls", cut or not.
            choice.finish_reason = "length"
        cut = False
        for call in choice.message.tool_calls:
            arguments, whole = _whole_json(call.function.arguments)
            cut = cut or not whole
            call.function.arguments = arguments
        response = super().messages_full_converter(generator)
        if cut and response.stop_reason == "tool_use":
            # Not to be run: what stopped it was a stop sequence, or the model itself.
            stop = choice.stop_reason
            response.stop_reason = "stop_sequence" if isinstance(stop, str) else "end_turn"
            response.stop_sequence = stop if isinstance(stop, str) else None
        return response


def _whole_json(arguments: str) -> tuple[str, bool]:
    """A JSON object's text, completed if it was cut off, and whether it was whole."""
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        try:
            value = jiter.from_json(arguments.encode(), partial_mode=True)
        except ValueError:
            value = {}
        return json.dumps(value if isinstance(value, dict) else {}), False
    return (arguments if isinstance(value, dict) else "{}"), True
