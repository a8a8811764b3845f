"""`agentcloud metrics`: the cluster's metrics now, and a Grafana dashboard of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.cli_options import GcsAddressOpt, JsonOpt, say

if TYPE_CHECKING:
    from rich.table import Table

_PREFIX = "ray_agentcloud_"
#: Labels that Ray adds to every metric; they tell nothing here.
_RAYS_LABELS = frozenset(
    {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "NodeId", "JobId", "pid"}
)
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One value; a histogram is its `_count` and `_sum`."""

    name: str
    labels: dict[str, str]
    value: float


def metrics_command(
    address: GcsAddressOpt = None,
    grafana: Annotated[
        Path | None,
        typer.Option(
            help="Write a Grafana dashboard, its provisioning and a prometheus.yml here instead.",
            metavar="DIR",
            file_okay=False,
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Show what the cluster exports to Prometheus now, or write a Grafana dashboard of it.

    Examples:
        agentcloud metrics

        agentcloud metrics --json --address 10.0.0.1:6379

        agentcloud metrics --grafana monitoring

        prometheus --config.file=monitoring/prometheus.yml

        GF_PATHS_PROVISIONING=$PWD/monitoring/provisioning grafana server
    """
    if grafana is not None:
        from agentcloud.tasks.grafana import write_grafana

        try:
            written = write_grafana(grafana)
        except OSError as error:
            raise ConfigError(f"cannot be written ({error})", where=str(grafana)) from None
        typer.echo(json.dumps([str(path) for path in written])) if as_json else say(
            "\n".join(f"wrote {path}" for path in written)
        )
        return
    import ray

    from agentcloud.cluster import lifecycle

    lifecycle.connect_ray(address)
    try:
        targets = metrics_targets()
    finally:
        ray.shutdown()
    samples = [sample for target in targets for sample in scrape(target)]
    if as_json:
        typer.echo(
            json.dumps([{"name": s.name, "labels": s.labels, "value": s.value} for s in samples])
        )
    elif samples:
        from agentcloud.tasks.render import stdout_console

        stdout_console().print(samples_table(samples))
    else:
        say("no call was made yet, or no fleet is up: nothing of ours is exported")


def metrics_targets() -> list[str]:
    """`host:port` of every node of the connected Ray that exports metrics."""
    import ray

    return [
        f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for node in ray.nodes()
        if node["Alive"] and node["MetricsExportPort"]
    ]


def scrape(target: str) -> list[Sample]:
    """Our metrics as a node exports them now; buckets of histograms are left out.

    Raises:
        ConfigError: it does not answer.
    """
    import requests

    try:
        answer = requests.get(f"http://{target}/metrics", timeout=_TIMEOUT_S)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise ConfigError(
            f"exports no metrics ({type(error).__name__}); is its metrics port open from here?",
            where=target,
        ) from None
    return list(parse_samples(answer.text))


def parse_samples(text: str) -> Iterator[Sample]:
    """Our samples out of a page in Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix(_PREFIX)
            if name == sample.name or name.endswith(("_bucket", "_created")):
                continue
            labels = {k: v for k, v in sample.labels.items() if k not in _RAYS_LABELS}
            yield Sample(name, labels, sample.value)


def samples_table(samples: list[Sample]) -> Table:
    """A row per value."""
    from rich.table import Table

    table = Table()
    table.add_column("metric")
    table.add_column("of", overflow="fold")
    table.add_column("value", justify="right")
    for sample in sorted(samples, key=lambda s: (s.name, sorted(s.labels.items()))):
        of = " ".join(value for _, value in sorted(sample.labels.items()) if value)
        table.add_row(sample.name, of, f"{sample.value:,.6g}")
    return table
