"""What the SDK does with inputs that are no file, before it needs a cluster."""

import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.client import Client


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


def run(client: Client, inputs: Any, output: Path) -> None:
    client.run("agent.py:none", inputs, output=output)


def test_a_generator_is_never_held_and_leaves_nothing(temporary: Path, tmp_path: Path) -> None:
    def inputs() -> Iterator[dict[str, str]]:
        for number in range(10_000):
            yield {"id": f"t{number}", "text": "x" * 4000}

    tracemalloc.start()
    try:
        with Client(fleet=tmp_path / "none.yaml") as client:
            # All of it was written and read once before the fleet was looked for.
            with pytest.raises(ConfigError, match=r"none\.yaml"):
                run(client, inputs(), tmp_path / "out.jsonl")
            (folder,) = temporary.iterdir()
            assert (folder / "inputs.jsonl").stat().st_size > 40_000_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000
    assert os.listdir(temporary) == []


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ([{"x": {1}}], "an input is no JSON value: Object of type set"),
        ([float("nan")], "an input is no JSON value: Out of range float"),
        ({"x": 1}, "inputs are a file or an iterable, one input an item, no dict"),
    ],
)
def test_what_is_no_json_is_one_error_and_leaves_nothing(
    temporary: Path, tmp_path: Path, inputs: Any, why: str
) -> None:
    with Client(fleet=tmp_path / "none.yaml") as client:
        with pytest.raises(ConfigError, match=why):
            run(client, inputs, tmp_path / "out.jsonl")
        assert os.listdir(temporary) == []


def test_a_generator_that_fails_fails_the_run_and_leaves_nothing(
    temporary: Path, tmp_path: Path
) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise ValueError("the database is gone")

    with Client(fleet=tmp_path / "none.yaml") as client:
        with pytest.raises(ValueError, match="the database is gone"):
            run(client, inputs(), tmp_path / "out.jsonl")
        assert os.listdir(temporary) == []
