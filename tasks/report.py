"""A job's report: one HTML file that needs nothing else to be looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from html import escape

from agentcloud.tasks import report_plots
from agentcloud.tasks.money import show_usd
from agentcloud.tasks.render import show_duration
from agentcloud.tasks.report_data import ReportData, Sample
from agentcloud.tasks.tally import quantile

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto;
  max-width: 1000px; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.sub { color: #666; margin: .2rem 0 1.2rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; }
.tile { border: 1px solid #ddd; border-radius: 8px; padding: .6rem 1rem; min-width: 7rem; }
.tile b { display: block; font-size: 1.3rem; } .tile span { color: #666; font-size: .85rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem;
  margin-top: 1.5rem; }
.plots figure { margin: 0; } .plots svg { width: 100%; height: auto; }
figcaption { font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #eee; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.e { color: #b91c1c; overflow-wrap: anywhere; }
"""


def report_html(data: ReportData) -> str:
    """The report as one page; whatever users or models wrote is escaped.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    job = data.job.to_dict()
    began = datetime.fromtimestamp(data.job.created_unix_s).strftime("%Y-%m-%d %H:%M:%S")
    labels = "".join(f" · {escape(k)}={escape(v)}" for k, v in job["labels"].items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>job {escape(data.job.job_id)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(job['agent'] or '')}: {escape(data.job.state)}</h1>"
        f'<p class="sub">job {escape(data.job.job_id)} · begun {began} · run {data.job.epoch}'
        f"{labels}</p>"
        f'<div class="tiles">{"".join(_tiles(data))}</div>'
        f'<div class="plots">{"".join(_plots(data))}</div>'
        f"<h2>Models</h2>{_models(data)}"
        f"{_errors(data)}"
        f"<h2>Slowest tasks</h2>{_slowest(data)}"
        f"</body></html>\n"
    )


def _tiles(data: ReportData) -> Iterable[str]:
    known = sum((sums.usd for sums in data.models.values()), Decimal(0))
    record = data.job.record or {}
    total = record.get("tasks", {}).get("total")
    yield _tile("tasks done", f"{data.done:,}" + (f" of {total:,}" if total else ""))
    yield _tile("failed", f"{data.failed:,}")
    yield _tile("calls", f"{sum(sums.calls for sums in data.models.values()):,}")
    yield _tile("cost of answers", show_usd(known))
    if data.job.ended_unix_s is not None:
        yield _tile("charged, lost calls too", show_usd(data.job.spent_usd))
        yield _tile("took", show_duration(data.job.ended_unix_s - data.job.created_unix_s))
    yield _tile("task, median", _seconds(quantile(sorted(data.task_s.values), 0.5)))
    if data.restarted:
        yield _tile("tasks started again", f"{data.restarted:,}")
    if data.reused:
        yield _tile("recorded steps used", f"{data.reused:,}")
    if data.resent:
        yield _tile("paid calls sent again", f"{data.resent:,}")


def _tile(name: str, value: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _plots(data: ReportData) -> Iterable[str]:
    for title, svg in (
        ("Progress", report_plots.progress(data)),
        ("Latency of calls", report_plots.latency(data)),
        ("Cost by model", report_plots.cost(data)),
        ("Errors by kind", report_plots.errors(data)),
    ):
        if svg:
            yield f"<figure><figcaption>{title}</figcaption>{svg}</figure>"


def _models(data: ReportData) -> str:
    rows = [
        (
            escape(name),
            f"{sums.calls:,}",
            f"{sums.cached:,}",
            f"{sums.input_tokens:,}",
            f"{sums.output_tokens:,}",
            _spread(sums.ttft_s),
            _spread(sums.total_s),
            show_usd(sums.usd)
            + (f" (+{sums.unknown_cost_calls} unknown)" if sums.unknown_cost_calls else ""),
        )
        for name, sums in sorted(data.models.items())
    ]
    heads = ("model", "calls", "recorded or cached", "tokens in", "tokens out")
    return _table([*heads, "first token p50 / p95", "call p50 / p95", "cost"], rows)


def _errors(data: ReportData) -> str:
    if not data.errors:
        return ""
    rows = [
        (escape(kind), f"{count:,}", escape(data.examples[kind]))
        for kind, count in data.errors.most_common()
    ]
    return f"<h2>Errors</h2>{_table(['kind', 'tasks', 'for example'], rows, wide=2)}"


def _slowest(data: ReportData) -> str:
    rows = [
        (
            escape(task.id),
            _seconds(task.seconds),
            f"{task.calls}",
            f"{task.attempts}",
            show_usd(None if task.usd is None else Decimal(task.usd)),
            escape(task.error or ""),
        )
        for task in data.slowest
    ]
    return _table(["task", "took", "calls", "starts", "cost", "error"], rows, wide=5)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], wide: int | None = None) -> str:
    """A table of escaped cells; numbers to the right, all but the first and the `wide` column."""

    def css(column: int) -> str:
        return "" if column == 0 else ' class="e"' if column == wide else ' class="n"'

    head = "".join(f"<th{css(n)}>{escape(name)}</th>" for n, name in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{css(n)}>{cell}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _spread(sample: Sample) -> str:
    ordered = sorted(sample.values)
    return f"{_seconds(quantile(ordered, 0.5))} / {_seconds(quantile(ordered, 0.95))}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3g} s"
