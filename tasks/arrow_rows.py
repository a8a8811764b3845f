"""Rows of Arrow data: Parquet files, folders of them, and Hugging Face datasets saved on disk.

What `Dataset.save_to_disk` leaves is a folder of Arrow streams, named in `state.json`; they are
read without the `datasets` package. Values that JSON lacks become text: dates and times as ISO
8601, decimals as digits, bytes as base64.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeAlias

from agentcloud.cluster.errors import ConfigError

#: Rows that are in memory at once.
_BATCH_ROWS: Final = 1024


class BadRow(Exception):
    """One row that cannot be used; readers give it in place of the row's value."""


#: A row as its format's reader gives it: line (or row) number and its value, or what is wrong.
Row: TypeAlias = tuple[int, Any]


def parquet_rows(path: Path, name: str) -> Iterator[Row]:
    """Rows of a Parquet file.

    Raises:
        ConfigError: it is no Parquet, or pyarrow is missing.
    """
    return _rows(_parquet_batches([path], name))


def folder_rows(path: Path, name: str) -> Iterator[Row]:
    """Rows of a dataset in a folder: one that `datasets` saved, or Parquet files by their names.

    Raises:
        ConfigError: it is neither, or has splits of which one has to be named.
    """
    # Four cases: a dataset for each split; one dataset; Parquet files; anything else.
    if (path / "dataset_dict.json").is_file():
        splits = _object(path / "dataset_dict.json", name).get("splits") or ["(none)"]
        raise ConfigError(
            f"holds the splits {', '.join(splits)}; name one of them: {name}/{splits[0]}",
            where=name,
        )
    if (path / "state.json").is_file():
        return _rows(_saved_batches(path, name))
    if files := sorted(path.glob("*.parquet")):
        return _rows(_parquet_batches(files, name))
    raise ConfigError(
        "is a folder without a dataset: neither state.json (which save_to_disk of Hugging Face "
        "datasets writes) nor a *.parquet is in it",
        where=name,
    )


def _parquet_batches(files: Iterable[Path], name: str) -> Iterator[Any]:
    with _arrow(name, "Parquet"):
        import pyarrow.parquet

        for each in files:
            with pyarrow.parquet.ParquetFile(each) as file:
                yield from file.iter_batches(batch_size=_BATCH_ROWS)


def _saved_batches(path: Path, name: str) -> Iterator[Any]:
    state = _object(path / "state.json", name)
    if state.get("_indices_files"):
        raise ConfigError(
            "was saved by an old version of datasets, with a selection beside its rows; load it "
            "and save it again with datasets 2 or later",
            where=name,
        )
    # Columns that `set_format` hid are not there for whoever loads it either.
    columns = None if state.get("_output_all_columns") else state.get("_format_columns")
    with _arrow(name, "a saved dataset"):
        import pyarrow

        for entry in state.get("_data_files", []):
            with (
                pyarrow.OSFile(str(path / entry["filename"])) as file,
                pyarrow.ipc.open_stream(file) as stream,
            ):
                for batch in stream:
                    yield batch.select(columns) if columns else batch


def _rows(batches: Iterator[Any]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                number += 1
                yield number, _json_row(row)


def _json_row(row: dict[str, Any]) -> dict[str, Any] | BadRow:
    # Most rows are JSON as they are, and the check in C is faster than any of ours.
    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError):
        try:
            row = _as_json(row)
            json.dumps(row, allow_nan=False)
        except (TypeError, ValueError) as error:
            return BadRow(f"holds what JSON cannot ({error})")
    return row


def _as_json(value: Any) -> Any:
    match value:
        case dict():
            return {key: _as_json(each) for key, each in value.items()}
        case list() | tuple():
            return [_as_json(each) for each in value]
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case Decimal():
            return format(value, "f")
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return value


def _object(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path.name} is not JSON ({error})", where=name) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} is no JSON object", where=name)
    return content


@contextlib.contextmanager
def _arrow(name: str, what: str) -> Iterator[None]:
    try:
        import pyarrow
    except ImportError:
        raise ConfigError(
            f"{what} needs pyarrow: pip install 'agentcloud[parquet]'", where=name
        ) from None
    try:
        yield
    except (pyarrow.ArrowInvalid, ValueError) as error:
        raise ConfigError(f"is not {what} ({error})", where=name) from None
