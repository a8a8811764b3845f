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
from agentcloud.tasks.cli_cluster import cache_line, endpoints_table


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


def test_the_line_of_the_response_cache() -> None:
    shown = {"hits": 1000, "shared": 500, "misses": 500, "hit_rate": 0.75, "saved_usd": "0.75"}
    kept = {"answers": 1200, "bytes": 3_400_000}
    assert cache_line(shown | kept) == (
        "response cache: answered 1,500 of 2,000 calls (75%), saved $0.75; "
        "keeps 1,200 answers, 3.4 MB"
    )
    none = {"hits": 0, "shared": 0, "misses": 0, "hit_rate": None, "saved_usd": "0"}
    nothing = cache_line(none | {"answers": None, "bytes": None})
    assert nothing.startswith("response cache: answered 0 of 0 calls, saved $0")
