"""The table of endpoints: every column is what its heading says."""

from __future__ import annotations

import io
import random

from rich.console import Console

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.tasks.cli_cluster import endpoints_table


def test_headings_stand_over_their_figures() -> None:
    config = parse_fleet(
        {"accounts": {"main": {}}, "hosted": {"claude-haiku-4-5": {"account": "main"}}}
    )
    core = SchedulerCore(config, load_catalog(), FakeClock(0.0), random.Random(1))
    core.register(hosted_specs(config))
    endpoints = core.snapshot()["endpoints"]
    [name] = endpoints
    endpoints[name]["totals"] |= {
        "calls": 7,
        "input_tokens": 400,
        "cache_read_tokens": 600,
        "output_tokens": 31,
        "ttft_p50_s": 0.12,
        "ttft_p95_s": 0.45,
        "tokens_per_s": 9.5,
        "cost_usd": "1.25",
        "saved_usd": "0.75",
    }
    out = io.StringIO()
    Console(file=out, width=180).print(endpoints_table(endpoints))
    heads, cells = (
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")]
        for line in out.getvalue().splitlines()
        if "tokens in" in line or name in line
    )
    shown = dict(zip(heads, cells, strict=True))
    assert shown["calls"] == "7"
    assert (shown["tokens in"], shown["tokens out"]) == ("1,000", "31")
    assert shown["cached"] == "60%, saved $0.75"
    assert (shown["TTFT p50"], shown["p95"]) == ("120 ms", "450 ms")
    assert (shown["tokens/s"], shown["cost"]) == ("9.5", "$1.25")
