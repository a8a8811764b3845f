"""The Grafana dashboard of a cluster and what feeds it: panels as data, and the files to write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: Prometheus' data source as our files call it.
DATASOURCE: Final = "agentcloud-prometheus"
#: What rates are taken over: Grafana fills it in, others put a duration there.
INTERVAL: Final = "$__rate_interval"
#: Where Ray's head keeps the list of nodes to scrape.
SERVICE_DISCOVERY: Final = "/tmp/ray/prom_metrics_service_discovery.json"  # noqa: S108 - Ray's own


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and the name that each of its lines gets."""

    expr: str
    legend: str

    def over(self, interval: str) -> str:
        """The expression with its rates over a duration such as `1m`."""
        return self.expr.replace(INTERVAL, interval)


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `unit` is Grafana's name of a unit."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    what: str


def _rate(metric: str, by: str, factor: str = "") -> str:
    return f"sum by ({by}) (rate(ray_agentcloud_{metric}[{INTERVAL}])){factor}"


def _quantile(fraction: float, metric: str, by: str = "endpoint") -> str:
    buckets = _rate(f"{metric}_bucket", f"le, {by}")
    return f"histogram_quantile({fraction}, {buckets})"


def _p50_p95(metric: str) -> tuple[Query, ...]:
    return tuple(
        Query(_quantile(fraction, metric), f"{{{{endpoint}}}} p{round(fraction * 100)}")
        for fraction in (0.5, 0.95)
    )


PANELS: Final[tuple[Panel, ...]] = (
    Panel("Time to first token", "s", _p50_p95("ttft_seconds"), "From sending to the first token."),
    Panel(
        "Tokens per second",
        "short",
        (Query(_rate("tokens_total", "model, direction"), "{{model}} {{direction}}"),),
        "By model; `input` is the part of the prompt that no cache held.",
    ),
    Panel(
        "Cost per hour",
        "currencyUSD",
        (Query(_rate("cost_usd_total", "model", " * 3600"), "{{model}}"),),
        "Known cost by model, as if the last minutes went on for an hour.",
    ),
    Panel(
        "Budget burn",
        "percentunit",
        (
            Query(
                "max by (scope) (ray_agentcloud_budget_used_usd) "
                "/ (max by (scope) (ray_agentcloud_budget_limit_usd) > 0)",
                "{{scope}}",
            ),
        ),
        "Spent, reserved and unknown money as a share of each cap.",
    ),
    Panel(
        "Money used",
        "currencyUSD",
        (Query("max by (scope) (ray_agentcloud_budget_used_usd)", "{{scope}}"),),
        "Spent, reserved and unknown, by budget.",
    ),
    Panel(
        "Limits headroom",
        "percentunit",
        (
            Query(
                "min by (account, family, limit) (ray_agentcloud_limit_headroom_ratio)",
                "{{account}}/{{family}} {{limit}}",
            ),
        ),
        "Share of an account's rate limits that is free.",
    ),
    Panel(
        "KV cache in use",
        "percentunit",
        (Query("max by (endpoint) (ray_agentcloud_kv_cache_used_ratio)", "{{endpoint}}"),),
        "At 100% a replica preempts requests.",
    ),
    Panel("Lease waits", "s", _p50_p95("lease_wait_seconds"), "Waiting for an endpoint."),
    Panel(
        "Calls waiting and running",
        "short",
        (
            Query("max(ray_agentcloud_leases_waiting)", "waiting"),
            Query("max by (endpoint) (ray_agentcloud_endpoint_running)", "{{endpoint}}"),
        ),
        "Calls that wait for a lease, and those that hold one.",
    ),
    Panel(
        "Calls by outcome",
        "reqps",
        (Query(_rate("calls_total", "endpoint, outcome"), "{{endpoint}} {{outcome}}"),),
        "Sends a second.",
    ),
    Panel(
        "Errors by kind",
        "reqps",
        (Query(_rate("errors_total", "endpoint, error"), "{{endpoint}} {{error}}"),),
        "The API's error types.",
    ),
    Panel(
        "Retries",
        "reqps",
        (Query(_rate("retries_total", "endpoint"), "{{endpoint}}"),),
        "Sends after the first of their call.",
    ),
    Panel(
        "Time per output token",
        "s",
        _p50_p95("time_per_output_token_seconds"),
        "After the first token.",
    ),
    Panel(
        "Waiting inside the engine",
        "s",
        _p50_p95("engine_queue_seconds"),
        "Local replicas: leased, not yet scheduled by vLLM.",
    ),
)

_COLUMNS: Final = 2
_GRID_WIDTH: Final = 24
_HEIGHT: Final = 8


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "agentcloud",
        "title": "agentcloud",
        "tags": ["agentcloud"],
        "schemaVersion": 39,
        "time": {"from": "now-30m", "to": "now"},
        "refresh": "5s",
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def write_grafana(folder: Path, service_discovery: str = SERVICE_DISCOVERY) -> list[Path]:
    """Write dashboard, Grafana's provisioning and Prometheus' configuration.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        service_discovery: Ray's file that lists the nodes to scrape, on the head.

    Returns:
        What was written.
    """
    source = {
        "apiVersion": 1,
        "datasources": [
            {
                "name": DATASOURCE,
                "uid": DATASOURCE,
                "type": "prometheus",
                "access": "proxy",
                "url": "http://127.0.0.1:9090",
                "isDefault": True,
            }
        ],
    }
    provider = {
        "apiVersion": 1,
        "providers": [
            {
                "name": "agentcloud",
                "type": "file",
                "options": {"path": str((folder / "dashboards").absolute())},
            }
        ],
    }
    scrape = {
        "global": {"scrape_interval": "5s"},
        "scrape_configs": [
            {"job_name": "ray", "file_sd_configs": [{"files": [service_discovery]}]},
        ],
    }
    # JSON is YAML: one writer serves both.
    files = {
        "dashboards/agentcloud.json": dashboard(),
        "provisioning/datasources/agentcloud.yaml": source,
        "provisioning/dashboards/agentcloud.yaml": provider,
        "prometheus.yml": scrape,
    }
    written = []
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
        written.append(path)
    return written


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    width = _GRID_WIDTH // _COLUMNS
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.what,
        "datasource": {"type": "prometheus", "uid": DATASOURCE},
        "gridPos": {"x": column * width, "y": row * _HEIGHT, "w": width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query.expr, "legendFormat": query.legend}
            for place, query in enumerate(panel.queries)
        ],
    }
