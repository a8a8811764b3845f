"""The results file: whole lines only, resumed, guarded against a second writer."""

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.jsonl_results import ResultsFile
from agentcloud.tasks.results import read_results, result_line
from agentcloud.tasks.spec import TaskEnd, TaskResult


def call(cost: str | None = "0.001", **values: Any) -> dict[str, Any]:
    return {
        "endpoint": "replica:small:0",
        "model": "small",
        "reason": "only one",
        "attempts": 1,
        "input_tokens": 10,
        "cache_write_tokens": 0,
        "cache_read_tokens": 2,
        "output_tokens": 5,
        "cost_usd": None if cost is None else Decimal(cost),
        "queue_s": 0.0,
        "ttft_s": 0.01,
        "total_s": 0.1,
    } | values


def line(id_: str, *, done: bool = True, calls: tuple[dict[str, Any], ...] = ()) -> str:
    result = TaskResult(id_, TaskEnd.DONE, 1.5, "2026-01-01T00:00:00Z", output="ok", calls=calls)
    return result_line(result, done=done, attempts=1, error=None if done else "no")


def test_a_line_has_the_documented_shape() -> None:
    assert json.loads(line("a", calls=(call(), call("0.0005")))) == {
        "id": "a",
        "status": "done",
        "output": "ok",
        "attempts": 1,
        "usage": {
            "input_tokens": 20,
            "cache_write_tokens": 0,
            "cache_read_tokens": 4,
            "output_tokens": 10,
        },
        "cost_usd": "0.0015",
        "calls": [call() | {"cost_usd": "0.001"}, call() | {"cost_usd": "0.0005"}],
        "duration_s": 1.5,
        "started_at": "2026-01-01T00:00:00Z",
    }


def test_a_task_with_a_call_of_unknown_cost_costs_unknown_not_zero() -> None:
    assert json.loads(line("a", calls=(call(), call(None))))["cost_usd"] is None
    assert json.loads(line("a"))["cost_usd"] == "0"


def test_it_goes_on_where_an_earlier_run_ended(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "out.jsonl"
    first = ResultsFile(path)
    first.append([line("a"), line("b", done=False)])
    first.close()
    second = ResultsFile(path)
    assert (set(second.ids), second.done, second.failed) == ({"a", "b"}, 1, 1)
    second.append([line("c")])
    second.close()
    assert [entry["id"] for entry in read_results(path)] == ["a", "b", "c"]


@settings(deadline=None)  # it writes files
@given(cut=st.integers(min_value=0))
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    whole = [line(id_).encode() + b"\n" for id_ in ("a", "b", "é")]
    data = b"".join(whole)
    cut %= len(data) + 1
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    path.write_bytes(data[:cut])
    file = ResultsFile(path)
    kept = sum(sum(map(len, whole[: n + 1])) <= cut for n in range(3))
    assert set(file.ids) == set(["a", "b", "é"][:kept])
    file.append([line("z")])
    file.close()
    assert [entry["id"] for entry in read_results(path)] == [*["a", "b", "é"][:kept], "z"]


def test_failed_lines_are_taken_out_to_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("\n".join([line("a"), line("b", done=False), line("c"), ""]))
    file = ResultsFile(path, retry_failed=True)
    assert (set(file.ids), file.done, file.failed) == ({"a", "c"}, 2, 0)
    file.append([line("b")])
    file.close()
    assert [entry["id"] for entry in read_results(path)] == ["a", "c", "b"]
    assert os.listdir(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("retry_failed", [False, True])
def test_a_second_writer_is_refused(tmp_path: Path, retry_failed: bool) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(line("a", done=False) + "\n")
    file = ResultsFile(path, retry_failed=retry_failed)
    with pytest.raises(ConfigError, match="another job is writing it"):
        ResultsFile(path)
    file.close()
    file.close()
    ResultsFile(path).close()


@pytest.mark.parametrize("content", ["hello\n", '{"id": 1, "status": "done"}\n', "[1]\n", "{}\n"])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"mine\.jsonl:1: exists and is no results file"):
        ResultsFile(path)
    assert path.read_text() == content


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write it"):
        ResultsFile(tmp_path)
