"""A line of results as a row of Parquet, and back without loss.

Columns are a line's keys; `calls` and `usage` are nested. What may be any JSON value is JSON as
text: `output`, and `more`, which holds the keys that have no column. Money is text, as in JSON
lines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from agentcloud.cluster.errors import ConfigError

_TOKENS: Final = dict.fromkeys(
    ("input_tokens", "cache_write_tokens", "cache_read_tokens", "output_tokens"), "int64"
)
_CALL: Final = {
    **dict.fromkeys(("call", "endpoint", "model", "reason"), "string"),
    "attempts": "int64",
    **_TOKENS,
    "cost_usd": "string",
    **dict.fromkeys(("queue_s", "ttft_s", "total_s"), "double"),
    "more": "string",
}
_LINE: Final = {
    **dict.fromkeys(("id", "status", "output", "error", "error_kind"), "string"),
    "attempts": "int64",
    "usage": "struct",
    "cost_usd": "string",
    "calls": "list",
    **dict.fromkeys(("reused_steps", "resent_calls"), "int64"),
    "duration_s": "double",
    "started_at": "string",
    "more": "string",
}
_OPTIONAL: Final = ("reused_steps", "resent_calls")


def import_pyarrow(path: Path) -> Any:
    """The package, with what reads, writes and filters.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow: pip install 'agentcloud[parquet]', or choose *.jsonl",
            where=str(path),
        ) from None
    return pyarrow


def schema(pyarrow: Any) -> Any:
    """Of every part."""
    kinds = {"string": pyarrow.string(), "int64": pyarrow.int64(), "double": pyarrow.float64()}

    def struct(fields: dict[str, str]) -> Any:
        return pyarrow.struct([(name, kinds[kind]) for name, kind in fields.items()])

    nested = {"usage": struct(_TOKENS), "calls": pyarrow.list_(struct(_CALL))}
    return pyarrow.schema([(name, nested.get(name) or kinds[_LINE[name]]) for name in _LINE])


def row_of(line: dict[str, Any]) -> dict[str, Any]:
    """A row with every column."""
    row = _columns(line, _LINE)
    if "output" in line:
        row["output"] = json.dumps(line["output"])
    row["calls"] = [_columns(call, _CALL) for call in line["calls"]]
    return row


def _columns(entry: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    more = {key: value for key, value in entry.items() if key not in columns}
    return {key: entry.get(key) for key in columns} | {"more": json.dumps(more) if more else None}


def line_of(row: dict[str, Any]) -> dict[str, Any]:
    """The line that a row was made of."""
    done = row["status"] == "done"
    line: dict[str, Any] = {}
    for key in _LINE:
        # Keys that a line has only where they say something.
        if key == "output" and done:
            line[key] = json.loads(row[key])
        elif key in ("error", "error_kind") and not done:
            line[key] = row[key]
        elif key == "calls":
            line[key] = [_with_more(call) for call in row[key]]
        elif key not in ("output", "error", "error_kind", "more") and (
            row[key] is not None or key not in _OPTIONAL
        ):
            line[key] = row[key]
    return _with_more(line | {"more": row["more"]})


def _with_more(entry: dict[str, Any]) -> dict[str, Any]:
    more = entry.pop("more")
    return entry | json.loads(more) if more else entry
