"""The results file as JSON lines: whole lines only, one writer, resumable."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.id_set import IdSet


class ResultsFile:
    """The one writer of a results file; a second one is refused.

    What an earlier run left in the file is kept: `ids` are those it holds, `done` and `failed` how
    many of each. A last line that a crash cut off is removed.

    Args:
        path: the file; it and its folder are made when missing.
        retry_failed: failed lines are taken out, so that their tasks run again.
        ids: where to put what it holds, beside what is there already; None: a set of its own.

    Raises:
        ConfigError: it cannot be written, is no results file, or another job is writing it.
    """

    def __init__(self, path: Path, *, retry_failed: bool = False, ids: IdSet | None = None) -> None:
        self.path = path
        self.ids = ids if ids is not None else IdSet()
        self.done = self.failed = 0
        self._is_new = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot write it ({error.strerror}); choose another --output", where=str(path)
            ) from None
        try:
            self._lock(self._fd)
            if self._mend_and_read(leave_failed_out=retry_failed):
                self._drop_failed()
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, lines: Sequence[str]) -> None:
        """Write whole lines at once.

        Raises:
            ConfigError: the disk is full or gone.
        """
        data = memoryview("".join(f"{line}\n" for line in lines).encode())
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise ConfigError(f"cannot write it ({error.strerror})", where=str(self.path)) from None

    def close(self) -> None:
        """Put everything on the disk and let others write. Safe to call twice."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # pipes and some file systems cannot
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def leave(self) -> None:
        """Close it as it was found: a file that opening has made is removed."""
        self.close()
        if self._is_new:
            self.path.unlink(missing_ok=True)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                "another job is writing it; choose another --output", where=str(self.path)
            ) from None

    def _mend_and_read(self, *, leave_failed_out: bool) -> bool:
        """Returns whether lines were left out."""
        kept_bytes = 0
        left_out = False
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    os.ftruncate(self._fd, kept_bytes)
                    break
                kept_bytes += len(raw)
                entry = parse_line(raw)
                if entry is None:
                    raise ConfigError(
                        "exists and is no results file; choose another --output",
                        where=f"{self.path}:{number}",
                    )
                is_done = entry["status"] == "done"
                if leave_failed_out and not is_done:
                    left_out = True
                elif self.ids.add(entry["id"]):
                    self.done += is_done
                    self.failed += not is_done
        return left_out

    def _drop_failed(self) -> None:
        # Atomic: at any moment the path holds either the old lines or the kept ones, whole.
        beside = self.path.with_name(self.path.name + ".new")
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        try:
            self._lock(fd)
            with self.path.open("rb") as old, os.fdopen(os.dup(fd), "wb") as new:
                for raw in old:
                    entry = parse_line(raw)
                    if entry is not None and entry["status"] == "done":
                        new.write(raw)
            os.fsync(fd)
            beside.replace(self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the whole lines of a results file.

    Raises:
        ConfigError: it is not there, or is no results file.
    """
    try:
        with path.open("rb") as file:
            yield from lines_of(file, path)
    except OSError as error:
        raise ConfigError(f"cannot read it ({error.strerror})", where=str(path)) from None


def lines_of(file: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    """The same of an open file."""
    for number, raw in enumerate(file, 1):
        if not raw.endswith(b"\n"):
            return  # still being written
        entry = parse_line(raw)
        if entry is None:
            raise ConfigError("is no line of results", where=f"{path}:{number}")
        yield entry


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """A line of results; None: it is none."""
    try:
        entry = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.get("status") not in ("done", "failed"):
        return None
    return entry if isinstance(entry.get("id"), str) else None
