"""Inputs of a job: JSONL, CSV, Parquet or a folder with a dataset, streamed.

A line that cannot be read becomes a `BadInput` that names file and line; whoever reads decides
whether it stops the job. Ids come from an `id` field, else from the line number; an id that was
seen before is a bad input too. Ids are all that is remembered of what was read, as `IdSet` does.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.arrow_rows import BadRow, Row, folder_rows, parquet_rows
from agentcloud.tasks.id_set import IdSet
from agentcloud.tasks.spec import OnBadInput

#: A field of CSV may hold a whole document; Python's own limit is 128 KiB.
_CSV_FIELD_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """One readable input; `index` counts inputs from 0, bad ones included."""

    id: str
    index: int
    item: Any


@dataclass(frozen=True, slots=True)
class BadInput:
    """One input that cannot be used; `why` names file and line."""

    id: str
    index: int
    why: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What an input file holds."""

    total: int
    bad: int


def read_inputs(path: Path, *, source: str | None = None) -> Iterator[Input | BadInput]:
    """Stream a file's inputs in order.

    Args:
        path: the file, whose suffix says the format, or the folder of a dataset.
        source: how bad inputs name it; None: its name.

    Raises:
        ConfigError: it cannot be opened, or its format is not known.
    """
    name = source or path.name
    seen = IdSet()
    repeated = 0
    for index, (line, value) in enumerate(_rows(path, name)):
        try:
            if isinstance(value, BadRow):
                raise value
            id_ = _id_of(value, line)
            if not seen.add(id_):
                # Where it was is looked up once: who has one such id to mend is helped by it.
                repeated += 1
                where = f", at line {_first_line(path, name, id_)}" if repeated == 1 else ""
                raise BadRow(f"id {id_!r} was seen before{where}; ids must be unique")
        except BadRow as bad:
            yield BadInput(f"line:{line}", index, f"{name}:{line}: {bad}")
        else:
            yield Input(id_, index, value)


def _first_line(path: Path, name: str, id_: str) -> int:
    for line, value in _rows(path, name):
        with contextlib.suppress(BadRow):
            if not isinstance(value, BadRow) and _id_of(value, line) == id_:
                return line
    raise ConfigError("was changed while it was read", where=name)


def survey(path: Path, *, on_bad: OnBadInput, source: str | None = None) -> Survey:
    """Read the whole input once before anything starts, so that a bad line costs nothing.

    Raises:
        ConfigError: the file holds nothing, or (under `stop`) an input that cannot be used.
    """
    total = bad = 0
    for entry in read_inputs(path, source=source):
        total += 1
        if isinstance(entry, BadInput):
            if on_bad is OnBadInput.STOP:
                raise ConfigError(f"{entry.why}; mend it, or leave it out: --on-bad-input skip")
            bad += 1
    if total == 0:
        raise ConfigError("holds no inputs", where=source or str(path))
    return Survey(total, bad)


def _rows(path: Path, name: str) -> Iterator[Row]:
    readers = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".parquet": parquet_rows,
    }
    reader = folder_rows if path.is_dir() else readers.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(readers)
        raise ConfigError(
            f"its format is not known by its name; known: {known}, and folders of datasets",
            where=name,
        )
    try:
        yield from reader(path, name)
    except OSError as error:
        raise ConfigError(f"cannot read it ({error.strerror or error})", where=str(path)) from None


def _jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                yield (
                    line,
                    json.loads(raw.decode("utf-8-sig").rstrip(), parse_constant=_no_constant),
                )
            except UnicodeDecodeError as error:
                yield line, BadRow(f"not UTF-8 (byte {error.start + 1} of the line)")
            except json.JSONDecodeError as error:
                yield line, BadRow(f"not JSON ({error.msg} at column {error.colno})")
            except (ValueError, RecursionError) as error:
                yield line, BadRow(f"not JSON ({error})")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _csv_rows(path: Path, name: str) -> Iterator[Row]:
    csv.field_size_limit(_CSV_FIELD_LIMIT_BYTES)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # Bytes that are no UTF-8 come through as surrogates, so that one bad row stays one bad row.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            columns = reader.fieldnames or []
        except csv.Error as error:
            raise ConfigError(f"its header is not CSV ({error})", where=f"{name}:1") from None
        if len(set(columns)) != len(columns):
            raise ConfigError("two columns have the same name", where=f"{name}:1")
        while True:
            # A quoted field may span lines: name the row by its last, as editors count.
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, BadRow(f"not CSV ({error})")
                continue
            yield reader.line_num, _checked_csv_row(row, len(columns))


def _checked_csv_row(row: dict[str | Any, Any], columns: int) -> dict[str, str] | BadRow:
    if None in row:
        return BadRow(f"{columns + len(row[None])} fields where the header has {columns}")
    if None in row.values():
        given = sum(value is not None for value in row.values())
        return BadRow(f"{given} fields where the header has {columns}")
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError:
        return BadRow("not UTF-8")
    return row


def _id_of(value: Any, line: int) -> str:
    given = value.get("id") if isinstance(value, dict) else None
    if given is None or given == "":
        return str(line)
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise BadRow(f"its id is neither text nor a whole number: {given!r}")
    return str(given)
