"""Request traces in either public format -> requests on the simulator's clock.

Two formats, told apart by the file's name ending:

- `.csv`: Azure's, `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure/AzurePublicDataset, CC BY 4.0);
- `.jsonl`: Mooncake's, one object a line with `timestamp` (ms), `input_length`, `output_length` and
  `hash_ids`, an id for each 512-token block of the prompt (kvcache-ai/Mooncake, Apache-2.0).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

#: Tokens of one prefix block (Mooncake's).
BLOCK_TOKENS: Final = 512


class TraceError(ValueError):
    """A trace that cannot be read: file, line, what is wrong."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace.

    Attributes:
        at_s: seconds since the first request.
        blocks: ids of the prompt's 512-token blocks; () where the trace tells none.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_trace(path: Path, limit: int | None = None) -> list[Arrival]:
    """Read a trace, in order of time.

    Args:
        path: a `.csv` or `.jsonl` file.
        limit: the first so many requests only; None: all.

    Raises:
        TraceError: it cannot be read, or a row is wrong.
    """
    readers = {".csv": _azure, ".jsonl": _mooncake}
    reader = readers.get(path.suffix)
    if reader is None:
        raise TraceError(f"{path}: a trace is a .csv (Azure's) or a .jsonl (Mooncake's)")
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            found = sorted(reader(path, lines), key=lambda each: each.at_s)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    if not found:
        raise TraceError(f"{path}: holds no requests")
    first_s = found[0].at_s
    return [
        Arrival(each.at_s - first_s, each.prompt_tokens, each.output_tokens, each.blocks)
        for each in found[:limit]
    ]


def _azure(path: Path, lines: Iterable[str]) -> Iterator[Arrival]:
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            # Seven digits of a second's fraction; six are understood.
            at_s = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            yield _arrival(at_s, row["ContextTokens"], row["GeneratedTokens"], ())
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}:{number}: not a row of Azure's format ({error})") from None


def _mooncake(path: Path, lines: Iterable[str]) -> Iterator[Arrival]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            yield _arrival(
                row["timestamp"] / 1000.0,
                row["input_length"],
                row["output_length"],
                tuple(int(each) for each in row.get("hash_ids", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}:{number}: not a row of Mooncake's format ({error})") from None


def _arrival(at_s: float, prompt: Any, output: Any, blocks: tuple[int, ...]) -> Arrival:
    # Zero tokens of either kind are in real traces; the engine computes at least one of each.
    return Arrival(at_s, max(1, int(prompt)), max(1, int(output)), blocks)
