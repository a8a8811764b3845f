"""The results as a folder of Parquet files, which every reader of Parquet takes as one table.

Lines go to `_rest-00007.jsonl` as they come. When it is large enough, and at the end, it becomes
`part-00007.parquet` (written beside, renamed) and is removed; the next lines go to the file of the
next number. So each line is in exactly one place whenever the writer dies: a `_rest` counts only
where no part of its number is there. Readers of Parquet leave out names that begin with `_` or `.`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.id_set import IdSet
from agentcloud.tasks.jsonl_results import ResultsFile, lines_of, read_lines
from agentcloud.tasks.parquet_columns import import_pyarrow, line_of, row_of, schema

log = structlog.get_logger()

#: A part is made of so many lines, or of so much text.
PART_LINES: Final = 10_000
PART_BYTES: Final = 32 << 20

_PART = re.compile(r"part-(\d{5,})\.parquet")
_REST = re.compile(r"_rest-(\d{5,})\.jsonl")
_BESIDE = re.compile(r"\.part-\d{5,}\.new")


class ParquetResults:
    """The one writer of a folder of results; a second one is refused.

    `ids`, `done` and `failed` say what an earlier run left in it.

    Args:
        path: the folder; made when missing.
        retry_failed: failed lines are taken out, so that their tasks run again.

    Raises:
        ConfigError: it cannot be written, holds something else, or another job is writing it.
    """

    def __init__(self, path: Path, *, retry_failed: bool = False) -> None:
        self._arrow = import_pyarrow(path)
        self.path = path
        self.ids = IdSet()
        self.done = self.failed = 0
        self._is_new = not path.exists()
        self._lines = self._bytes = 0
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileExistsError:
            raise ConfigError(
                "is a file, and Parquet results are a folder; choose another --output",
                where=str(path),
            ) from None
        except OSError as error:
            raise ConfigError(
                f"cannot write it ({error.strerror}); choose another --output", where=str(path)
            ) from None
        try:
            self._lock()
            self._number = self._mend()
            for number in range(self._number):
                self._take_part(_part(path, number), leave_failed_out=retry_failed)
            self._open_rest(retry_failed=retry_failed)
        except BaseException:
            os.close(self._fd)
            raise
        self.done += self._rest.done
        self.failed += self._rest.failed
        self._lines = self._rest.done + self._rest.failed

    def __repr__(self) -> str:
        return f"<ParquetResults {self.path}: {self._number} parts, {self._lines} lines besides>"

    def append(self, lines: Sequence[str]) -> None:
        """Write whole lines; a crash of this process after it loses none of them.

        Raises:
            ConfigError: the disk is full or gone.
        """
        self._rest.append(lines)
        self._lines += len(lines)
        self._bytes += sum(map(len, lines))
        if self._lines >= PART_LINES or self._bytes >= PART_BYTES:
            self._rest.close()
            try:
                self._seal()
            except OSError as error:
                raise ConfigError(
                    f"cannot write it ({error.strerror})", where=str(self.path)
                ) from None
            self._open_rest()

    def close(self) -> None:
        """Make the last part, put everything on the disk and let others write. Safe to call twice.

        Where the part cannot be made the lines stay as they are: readable, and gone on with.
        """
        if self._fd < 0:
            return
        self._rest.close()
        try:
            if self._lines:
                self._seal()
            else:
                self._rest.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning(
                "a part of the results stays JSON lines", path=str(self.path), why=str(error)
            )
        os.close(self._fd)
        self._fd = -1

    def leave(self) -> None:
        """Close it as it was found."""
        self._rest.leave()
        os.close(self._fd)
        self._fd = -1
        if self._is_new:
            self.path.rmdir()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                "another job is writing it; choose another --output", where=str(self.path)
            ) from None

    def _mend(self) -> int:
        """Remove what a crash left half-done; returns how many parts there are."""
        names = os.listdir(self.path)
        for name in names:
            if not any(pattern.fullmatch(name) for pattern in (_PART, _REST, _BESIDE)):
                raise ConfigError(
                    f"exists and holds {name}, which is no part of results; choose another "
                    "--output",
                    where=str(self.path),
                )
        numbers = sorted(int(found[1]) for name in names if (found := _PART.fullmatch(name)))
        if numbers != list(range(len(numbers))):
            raise ConfigError(
                f"lacks part {min(set(range(len(numbers))) - set(numbers))}; put it back, or "
                "choose another --output",
                where=str(self.path),
            )
        for name in names:
            rest = _REST.fullmatch(name)
            if _BESIDE.fullmatch(name) or (rest and int(rest[1]) < len(numbers)):
                (self.path / name).unlink()
        return len(numbers)

    def _take_part(self, part: Path, *, leave_failed_out: bool) -> None:
        left_out = False
        for row in self._ids_of(part):
            is_done = row["status"] == "done"
            if leave_failed_out and not is_done:
                left_out = True
            elif self.ids.add(row["id"]):
                self.done += is_done
                self.failed += not is_done
        if left_out:
            with self._arrow.parquet.ParquetFile(part) as file:
                table = file.read()
            self._replace(part, table.filter(self._arrow.compute.field("status") == "done"))

    def _ids_of(self, part: Path) -> Iterator[dict[str, Any]]:
        try:
            with self._arrow.parquet.ParquetFile(part) as file:
                if file.schema_arrow != schema(self._arrow):
                    raise ValueError("it has other columns")
                for batch in file.iter_batches(columns=["id", "status"]):
                    yield from batch.to_pylist()
        except (self._arrow.ArrowException, ValueError) as error:
            raise ConfigError(
                f"is no part of results ({error}); choose another --output", where=str(part)
            ) from None

    def _open_rest(self, *, retry_failed: bool = False) -> None:
        self._rest = ResultsFile(
            _rest(self.path, self._number), retry_failed=retry_failed, ids=self.ids
        )

    def _seal(self) -> None:
        rows = [row_of(line) for line in read_lines(self._rest.path)]
        table = self._arrow.Table.from_pylist(rows, schema(self._arrow))
        self._replace(_part(self.path, self._number), table)
        self._rest.path.unlink()
        self._number += 1
        self._lines = self._bytes = 0

    def _replace(self, part: Path, table: Any) -> None:
        beside = part.with_name(f".{part.stem}.new")
        self._arrow.parquet.write_table(table, beside, compression="zstd")
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(part)
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(self._fd)


def read_parts(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the lines of a folder of results, those of a running job so far.

    Raises:
        ConfigError: it is not there, or holds something else.
    """
    pyarrow = import_pyarrow(path)
    if not path.is_dir():
        raise ConfigError("cannot read it (there is no such folder)", where=str(path))
    number = 0
    while True:
        part = _part(path, number)
        # Three cases: a part; lines that are none yet; neither, unless they just became one.
        if part.exists():
            try:
                with pyarrow.parquet.ParquetFile(part) as file:
                    for batch in file.iter_batches(batch_size=1024):
                        yield from map(line_of, batch.to_pylist())
            except (pyarrow.ArrowException, KeyError, ValueError) as error:
                raise ConfigError(f"is no part of results ({error})", where=str(part)) from None
            number += 1
            continue
        rest = _rest(path, number)
        try:
            file = rest.open("rb")
        except FileNotFoundError:
            if part.exists():
                continue
            return
        with file:
            yield from lines_of(file, rest)
        return


def _part(path: Path, number: int) -> Path:
    return path / f"part-{number:05}.parquet"


def _rest(path: Path, number: int) -> Path:
    return path / f"_rest-{number:05}.jsonl"
