"""Prompt caching as billed: the rules alone, then through the real client."""

import asyncio
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Usage
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.sandbox import Latency, RateLimits, Sandbox, SandboxConfig
from agentcloud.cluster.sandbox.prompt import PromptBlock, prompt_blocks
from agentcloud.cluster.sandbox.usage import PromptCache, PromptUsage
from tests.cluster.sandbox.gates import GatedClock, until

MODEL = "claude-opus-5"
MARK: Any = {"type": "ephemeral"}
HOUR: Any = {"type": "ephemeral", "ttl": "1h"}


def text(size_tokens: int, letter: str = "a", mark: Any = None) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "text", "text": letter * (size_tokens * 4)}
    return block | ({"cache_control": mark} if mark else {})


def blocks_of(*content: dict[str, Any]) -> list[PromptBlock]:
    return prompt_blocks({"system": list(content)})


def billed(
    cache: PromptCache, blocks: list[PromptBlock], now_s: float = 0.0, *, commit: bool = True
) -> tuple[int, int, int, int]:
    """(plain, read, written for 5 minutes, written for an hour)"""
    usage = cache.look_up(blocks, salt="", min_tokens=100, now_s=now_s)
    if commit:
        cache.commit(usage, now_s)
    return (
        usage.input_tokens, usage.read_tokens, usage.write_5m_tokens, usage.write_1h_tokens
    )  # fmt: skip


def test_a_mark_writes_first_and_reads_after() -> None:
    cache = PromptCache()
    prompt = blocks_of(text(200, mark=MARK), text(50, "b"))
    assert billed(cache, prompt) == (50, 0, 200, 0)
    assert billed(cache, prompt) == (50, 200, 0, 0)
    assert billed(cache, blocks_of(text(200, mark=MARK), text(70, "c"))) == (70, 200, 0, 0)
    assert billed(cache, blocks_of(text(200, "x", mark=MARK))) == (0, 0, 200, 0)


def test_short_prompts_are_silently_not_cached() -> None:
    cache = PromptCache()
    prompt = blocks_of(text(99, mark=MARK))
    assert billed(cache, prompt) == billed(cache, prompt) == (99, 0, 0, 0)


def test_nothing_is_readable_before_the_first_answer_begins() -> None:
    cache = PromptCache()
    prompt = blocks_of(text(200, mark=MARK))
    assert billed(cache, prompt, commit=False) == (0, 0, 200, 0)
    assert billed(cache, prompt, commit=False) == (0, 0, 200, 0)


@pytest.mark.parametrize(("mark", "ttl_s"), [(MARK, 300.0), (HOUR, 3600.0)])
def test_entries_last_from_their_last_use(mark: Any, ttl_s: float) -> None:
    cache = PromptCache()
    prompt = blocks_of(text(200, mark=mark))
    billed(cache, prompt, 0.0)
    assert billed(cache, prompt, ttl_s - 1)[1] == 200
    assert billed(cache, prompt, 2 * ttl_s - 2)[1] == 200
    assert billed(cache, prompt, 3 * ttl_s)[1] == 0


def test_a_conversation_reads_what_the_turn_before_wrote() -> None:
    cache = PromptCache()
    assert billed(cache, blocks_of(text(200), text(10, "b", MARK))) == (0, 0, 210, 0)
    longer = blocks_of(text(200), text(10, "b"), text(20, "c"), text(30, "d", MARK))
    assert billed(cache, longer) == (0, 210, 50, 0)


@pytest.mark.parametrize(("between", "read"), [(18, 200), (19, 0)])
def test_the_look_back_is_20_blocks(between: int, read: int) -> None:
    cache = PromptCache()
    billed(cache, blocks_of(text(200, mark=MARK)))
    prompt = blocks_of(text(200), *(text(1, "b") for _ in range(between)), text(1, "c", MARK))
    assert billed(cache, prompt)[1] == read


def test_both_lifetimes_in_one_prompt_are_billed_apart() -> None:
    cache = PromptCache()
    prompt = blocks_of(text(200, mark=HOUR), text(50, "b", MARK), text(5, "c"))
    assert billed(cache, prompt, 0.0) == (5, 0, 50, 200)
    assert billed(cache, prompt, 400.0) == (5, 200, 50, 0)


def test_a_mark_at_the_top_marks_the_last_block() -> None:
    params: Any = {
        "cache_control": MARK,
        "messages": [{"role": "user", "content": "a" * 800}],
    }
    assert [block.ttl for block in prompt_blocks(params)] == ["5m"]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=30),
    marks=st.lists(st.tuples(st.integers(0, 29), st.booleans()), max_size=4),
    asked_s=st.lists(st.floats(0, 2000), min_size=1, max_size=6),
)
def test_every_token_is_billed_exactly_once(
    sizes: list[int], marks: list[tuple[int, bool]], asked_s: list[float]
) -> None:
    cache = PromptCache()
    marked = {index: HOUR if hour else MARK for index, hour in marks}
    prompt = blocks_of(*(text(size, "a", marked.get(i)) for i, size in enumerate(sizes)))
    for now_s in sorted(asked_s):
        parts = billed(cache, prompt, now_s)
        assert sum(parts) == sum(sizes)
        assert min(parts) >= 0


@settings(deadline=None)
@given(parts=st.tuples(*[st.integers(0, 10_000)] * 4).filter(any), total=st.integers(1, 50_000))
def test_another_tokenizers_total_is_split_alike(
    parts: tuple[int, int, int, int], total: int
) -> None:
    scaled = PromptUsage(*parts).scaled_to(total)
    # Each of the three rounded parts may be off by a half.
    assert abs(scaled.total_tokens - total) <= 2
    assert (scaled.read_tokens > 0) <= (parts[1] > 0)


def summary(usage: Usage) -> tuple[int, int | None, int, int]:
    assert usage.cache_creation is not None
    return (
        usage.input_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation.ephemeral_5m_input_tokens,
        usage.cache_creation.ephemeral_1h_input_tokens,
    )


async def test_the_client_sees_writes_then_reads_and_reads_are_free_of_the_limit() -> None:
    clock = FakeClock()
    config = SandboxConfig(limits={"*": RateLimits(input_tokens_per_minute=100_000)})
    async with (
        Sandbox(config, clock=clock) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox2", max_retries=0) as other,
    ):

        async def ask(asker: AsyncAnthropic, model: str = MODEL) -> Usage:
            message = await asker.messages.create(
                model=model,
                max_tokens=1,
                system=[text(1000, mark=HOUR)],  # type: ignore[list-item]  # a plain dict
                messages=[{"role": "user", "content": "Hello"}],
            )
            return message.usage

        assert summary(await ask(client)) == (5, 0, 0, 1000)
        assert summary(await ask(client)) == (5, 1000, 0, 0)
        # Neither another account nor another model can read it; haiku 4.5 keeps no such short one.
        assert summary(await ask(other)) == (5, 0, 0, 1000)
        assert summary(await ask(client, "claude-opus-5-5")) == (5, 0, 0, 1000)
        assert summary(await ask(client, "claude-haiku-4-5")) == (1005, 0, 0, 0)
        used = [call.remaining["input_tokens"] for call in sandbox.calls]
        assert used == [98_995, 98_990, 98_995, 97_985, 98_995]
        clock.advance(3601)
        assert summary(await ask(client)) == (5, 0, 0, 1000)


async def test_calls_at_once_all_write_and_one_ahead_lets_the_rest_read() -> None:
    params: Any = {
        "model": MODEL,
        "max_tokens": 2,
        "system": [text(1000, mark=MARK)],
        "messages": [{"role": "user", "content": "Hello"}],
    }
    slow = SandboxConfig(latency={MODEL: Latency(ttft_s=1.0), "*": Latency(per_output_token_s=1.0)})
    clock = GatedClock()
    async with (
        Sandbox(slow, clock=clock) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
    ):
        # Three at once, none of which has begun to answer when the last one is let in.
        calls = [asyncio.create_task(client.messages.create(**params)) for _ in range(3)]
        await until(lambda: clock.asleep == 3)
        clock.gate.set()
        cold = await asyncio.gather(*calls)
        assert [message.usage.cache_read_input_tokens for message in cold] == [0, 0, 0]

        # One has begun to stream and is not done: the next one reads already.
        clock.gate.clear()
        params["model"] = "claude-opus-5-5"
        async with client.messages.stream(**params) as stream:
            async for event in stream:
                if event.type == "message_start":
                    break
            warm = asyncio.create_task(client.messages.create(**params))
            await until(lambda: clock.asleep == 2)
            clock.gate.set()
            assert (await warm).usage.cache_read_input_tokens == 1000
