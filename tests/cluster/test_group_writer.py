"""Group commit in a thread: order, retries, and what no retry mends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

from agentcloud.cluster.group_writer import GroupWriter


def test_all_is_written_in_order_and_told() -> None:
    written: list[int] = []
    told: list[int] = []
    writer = GroupWriter[int](lambda items, _again: written.extend(items), name="writer")
    for number in range(100):
        writer.put(number, partial(told.append, number))
    writer.close()
    assert written == told == list(range(100))


def test_a_bug_ends_the_process_and_tells_nobody_that_it_is_written() -> None:
    broken = threading.Event()
    told: list[str] = []

    def write(_items: Sequence[str], _again: bool) -> None:
        raise SystemError("bad argument to internal function")

    writer = GroupWriter(write, name="writer", on_bug=broken.set)
    writer.put("x", lambda: told.append("x"))
    assert broken.wait(10)
    assert told == []
