"""The engine's pure parts: load, refusals, the outbox. And the reaper, on real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster import reaper
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import LoadReport
from agentcloud.cluster.engine_events import BlockEvents
from agentcloud.cluster.engine_load import LoadMeter
from agentcloud.cluster.engine_requests import check_request, hold_forced_calls
from agentcloud.cluster.errors import InvalidRequest
from agentcloud.cluster.outbox import Outbox
from tests.conftest import wait_until


@dataclass
class Step:
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_skipped_waiting_reqs: int = 0
    kv_cache_usage: float = 0.0


@dataclass
class Tokens:
    num_generation_tokens: int


def test_an_engine_without_requests_is_idle_whatever_it_said_last() -> None:
    clock = FakeClock()
    meter = LoadMeter(clock)
    meter.record(Step(num_running_reqs=5, kv_cache_usage=0.5), Tokens(7))
    clock.advance(100)
    load = meter.report(unfinished=0, prompt_tokens_queued=0)
    assert load == LoadReport(tokens_done=7, at_s=clock.now())


def test_progress_ages_from_the_last_token_or_the_first_request_after_idleness() -> None:
    clock = FakeClock()
    meter = LoadMeter(clock)
    clock.advance(1000)
    meter.woke()
    clock.advance(2)
    assert meter.report(unfinished=1, prompt_tokens_queued=9).progress_age_s == 2
    meter.record(Step(num_running_reqs=1), Tokens(1))
    clock.advance(3)
    load = meter.report(unfinished=1, prompt_tokens_queued=0)
    assert (load.progress_age_s, load.running, load.tokens_done) == (3, 1, 1)
    meter.record(Step(num_running_reqs=1), Tokens(0))
    assert meter.report(unfinished=1, prompt_tokens_queued=0).progress_age_s == 3


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_load_never_counts_more_than_there_is(running: int, waiting: int, unfinished: int) -> None:
    meter = LoadMeter(FakeClock())
    meter.record(Step(num_running_reqs=running, num_waiting_reqs=waiting), None)
    load = meter.report(unfinished=unfinished, prompt_tokens_queued=0)
    assert load.running <= unfinished
    assert load.waiting <= unfinished
    assert load.running + load.waiting >= unfinished


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (user({"type": "document", "source": {}}), "'document'"),
        (user({"type": "image", "source": {}}), "'image'"),
        (
            user({"type": "tool_result", "content": [{"type": "document", "source": {}}]}),
            "tool_result: 'document'",
        ),
        ({"messages": [], "tools": [{"type": "web_search_20250305"}]}, "'web_search_20250305'"),
        ({"messages": [], "system": [{"type": "image"}]}, "system: 'image'"),
    ],
)
def test_what_the_engine_would_drop_in_silence_is_refused_by_name(
    params: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        check_request(params, images=False)


def test_images_pass_where_the_model_reads_them() -> None:
    check_request(user({"type": "image", "source": {}}), images=True)
    check_request({"messages": [{"role": "user", "content": "text"}], "system": "s"}, images=False)


async def test_an_outbox_hands_out_everything_it_holds_in_order() -> None:
    outbox: Outbox[int] = Outbox()
    for item in range(5):
        outbox.put(item)
    batches = outbox.drain(lambda: 0)
    assert await anext(batches) == [0, 1, 2, 3, 4]
    outbox.put(5)
    outbox.close()
    outbox.put(6)
    assert await anext(batches) == [5]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_a_busy_outbox_waits_for_company() -> None:
    outbox: Outbox[int] = Outbox()
    batches = outbox.drain(lambda: 2)
    reading = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0)
    outbox.put(1)
    await asyncio.sleep(0)
    outbox.put(2)
    assert await reading == [1, 2]


_PARENT = """
import subprocess, sys, time
from agentcloud.cluster.reaper import start_reaper
start_reaper()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_the_reaper_ends_the_children_of_a_killed_process() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)

    parent.kill()
    parent.wait()
    parent.stdout.close()

    def gone() -> bool:
        try:
            with open(f"/proc/{child}/stat") as stat:
                return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    assert wait_until(gone, 5)


def test_a_mark_that_nobody_carries_reaps_nobody() -> None:
    assert reaper.marked("nobody's") == []
    reaper.reap("nobody's")


@pytest.mark.parametrize(
    ("choice", "tool", "strict"),
    [
        ({"type": "any"}, {"name": "f"}, True),
        ({"type": "tool", "name": "f"}, {"name": "f"}, True),
        ({"type": "any"}, {"name": "f", "strict": False}, False),
        ({"type": "auto"}, {"name": "f"}, None),
        (None, {"name": "f"}, None),
    ],
)
def test_a_forced_call_is_held_to_its_schema(
    choice: dict[str, Any] | None, tool: dict[str, Any], strict: bool | None
) -> None:
    params = {"tools": [tool]} | ({"tool_choice": choice} if choice else {})
    (held,) = hold_forced_calls(params)["tools"]
    assert held.get("strict") is strict
    assert params["tools"] == [tool], "the caller's request is left as it is"


def test_an_engine_that_was_killed_leaves_no_folder_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"{ended.pid}-x", f"{os.getppid()}-x"):
        (tmp_path / f"agentcloud-kv-{name}").mkdir()
    events = BlockEvents(lambda payload: payload)
    left = {path.name.split("-")[2] for path in tmp_path.iterdir()}
    assert left == {str(os.getppid()), str(os.getpid())}, "others that run keep theirs"
    events.close()
    assert len(list(tmp_path.iterdir())) == 1
