"""Results as Parquet: the same lines, one table for others, and whole wherever the writer dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks import parquet_results
from agentcloud.tasks.parquet_results import ParquetResults
from agentcloud.tasks.results import open_results, read_results, result_line
from agentcloud.tasks.spec import TaskEnd, TaskResult
from tests.tasks.test_results import call, line

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_results, "PART_LINES", 2)


def write(path: Path, lines: list[str], *, retry_failed: bool = False) -> None:
    results = open_results(path, retry_failed=retry_failed)
    for each in lines:
        results.append([each])
    results.close()


def ids(path: Path) -> list[str]:
    return [entry["id"] for entry in read_results(path)]


def test_the_same_lines_come_back_as_from_json_lines(tmp_path: Path) -> None:
    full = call(call="c-1", considered=[{"endpoint": "x", "why": None}], cached=True, agreement=0.5)
    done = TaskResult(
        "é", TaskEnd.DONE, 1.5, "2026-01-01T00:00:00Z", {"a": [1, None]}, calls=(full,), reused=2
    )
    lines = [
        result_line(done, done=True, attempts=2, error=None),
        line("b", done=False),
        line("c", calls=(call(None, call="c-2"), call(ttft_s=None, call="c-3"))),
        result_line(
            TaskResult("d", TaskEnd.DONE, 0.1, "", None, resent=1),
            done=True,
            attempts=1,
            error=None,
        ),
        json.dumps(json.loads(line("e")) | {"key_of_a_later_version": {"x": [1]}}),
    ]
    write(tmp_path / "out.parquet", lines)
    assert os.listdir(tmp_path / "out.parquet") == ["part-00000.parquet"]
    assert list(read_results(tmp_path / "out.parquet")) == list(map(json.loads, lines))


@pytest.mark.usefixtures("small_parts")
def test_others_read_the_folder_as_one_table_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    results = ParquetResults(path)
    for id_ in "abcde":
        results.append([line(id_, calls=(call(),))])
    assert ids(path) == ["a", "b", "c", "d", "e"]
    table = parquet.read_table(path)
    assert table.column("id").to_pylist() == ["a", "b", "c", "d"]
    assert [json.loads(text) for text in table.column("output").to_pylist()] == ["ok"] * 4
    assert table.column("usage").to_pylist()[0]["input_tokens"] == 10
    assert table.column("calls").to_pylist()[0][0]["cost_usd"] == "0.001"
    results.close()
    results.close()
    assert parquet.read_table(path).num_rows == 5


@pytest.mark.usefixtures("small_parts")
def test_it_goes_on_where_an_earlier_run_ended(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "out.parquet"
    write(path, [line("a"), line("b", done=False), line("c", done=False)])
    again = open_results(path)
    assert (set(again.ids), again.done, again.failed) == ({"a", "b", "c"}, 1, 2)
    again.append([line("d")])
    again.close()
    assert ids(path) == ["a", "b", "c", "d"]
    retried = open_results(path, retry_failed=True)
    assert (set(retried.ids), retried.done, retried.failed) == ({"a", "d"}, 2, 0)
    retried.append([line("c")])
    retried.close()
    assert ids(path) == ["a", "d", "c"]


CRASH = """
import os, sys
from pathlib import Path
from agentcloud.tasks import parquet_results
from agentcloud.tasks.parquet_results import ParquetResults
import pyarrow.parquet

point, path, lines = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
parquet_results.PART_LINES = 2
replace, unlink = Path.replace, Path.unlink

def die(*_):
    os._exit(9)

def half(table, where, **_):
    Path(where).write_bytes(b"PAR1 half")
    die()

def then_die(do):
    return lambda *args: (do(*args), die())

if point == "part half written":
    pyarrow.parquet.write_table = half
elif point == "part not renamed":
    Path.replace = die
elif point == "part renamed":
    Path.replace = then_die(replace)
elif point == "lines removed":
    Path.unlink = then_die(unlink)
results = ParquetResults(path)
for line in lines:
    results.append([line])
die()
"""


@pytest.mark.parametrize(
    "point",
    ["part half written", "part not renamed", "part renamed", "lines removed", "between parts"],
)
def test_wherever_the_writer_is_killed_each_line_is_there_once(tmp_path: Path, point: str) -> None:
    path = tmp_path / "out.parquet"
    given = ["a", "b", "c"] if point == "between parts" else ["a", "b"]
    command = [sys.executable, "-c", CRASH, point, str(path), *map(line, given)]
    assert subprocess.run(command, check=False).returncode == 9
    assert ids(path) == given
    again = open_results(path)
    assert (set(again.ids), again.done) == (set(given), len(given))
    again.append([line("z")])
    again.close()
    assert ids(path) == [*given, "z"]
    assert all(name.startswith("part-") for name in os.listdir(path))


def test_opening_it_only_to_look_leaves_no_trace(tmp_path: Path) -> None:
    open_results(tmp_path / "out.parquet").leave()
    assert os.listdir(tmp_path) == []
    results = open_results(tmp_path / "out.parquet")
    results.append([line("a")])
    with pytest.raises(ConfigError, match="another job is writing it"):
        open_results(tmp_path / "out.parquet")
    results.close()
    open_results(tmp_path / "out.parquet").leave()
    assert os.listdir(tmp_path / "out.parquet") == ["part-00000.parquet"]


def test_what_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file.parquet").write_text("mine")
    with pytest.raises(ConfigError, match="is a file, and Parquet results are a folder"):
        open_results(tmp_path / "file.parquet")
    (tmp_path / "data.parquet").mkdir()
    (tmp_path / "data.parquet" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt, which is no part of results"):
        open_results(tmp_path / "data.parquet")
    (tmp_path / "other.parquet").mkdir()
    table = __import__("pyarrow").table({"id": ["a"], "status": ["done"]})
    parquet.write_table(table, tmp_path / "other.parquet" / "part-00000.parquet")
    with pytest.raises(ConfigError, match="is no part of results"):
        open_results(tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="there is no such folder"):
        list(read_results(tmp_path / "none.parquet"))


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_is_gone_is_one_error(tmp_path: Path) -> None:
    write(tmp_path / "out.parquet", [line(id_) for id_ in "abcd"])
    (tmp_path / "out.parquet" / "part-00000.parquet").unlink()
    with pytest.raises(ConfigError, match="lacks part 0"):
        open_results(tmp_path / "out.parquet")
