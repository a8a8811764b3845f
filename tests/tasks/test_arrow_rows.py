"""Parquet and saved Hugging Face datasets as inputs.

`data/tickets` was written by the real package, `datasets` 5.2.0:
`DatasetDict(train=d, test=d.select([4, 1])).save_to_disk(..., num_shards={"train": 2, "test": 1})`.
"""

import datetime
import json
import shutil
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.package import pack
from agentcloud.tasks.sources import BadInput, Input, Survey, read_inputs, survey
from agentcloud.tasks.spec import OnBadInput

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TICKETS = Path(__file__).parent / "data" / "tickets"


def ticket(number: int) -> dict[str, Any]:
    return {
        "id": f"t{number}",
        "text": f"ticket {number}",
        "tags": ["a", "b"][: number % 3],
        "queue": number % 2,
        "at": f"2026-01-0{number + 1}T12:00:00",
        "photo": ["AP8=", "Af8=", "Av8=", "A/8=", "BP8="][number],
    }


@pytest.mark.parametrize(("split", "numbers"), [("train", [0, 1, 2, 3, 4]), ("test", [4, 1])])
def test_a_dataset_that_hugging_face_saved_is_read_in_its_order(
    split: str, numbers: list[int]
) -> None:
    assert list(read_inputs(TICKETS / split)) == [
        Input(f"t{number}", index, ticket(number)) for index, number in enumerate(numbers)
    ]


def test_several_splits_are_listed_and_one_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match=r"holds the splits train, test; .*: tickets/train$"):
        list(read_inputs(TICKETS))


def test_columns_that_the_dataset_hides_are_left_out(tmp_path: Path) -> None:
    shutil.copytree(TICKETS / "test", tmp_path / "test")
    state = json.loads((tmp_path / "test" / "state.json").read_text())
    state["_format_columns"] = ["text", "id"]
    (tmp_path / "test" / "state.json").write_text(json.dumps(state))
    assert [entry.item for entry in read_inputs(tmp_path / "test") if isinstance(entry, Input)] == [
        {"text": "ticket 4", "id": "t4"},
        {"text": "ticket 1", "id": "t1"},
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"_indices_files": [{"filename": "indices.arrow"}]}, "test: was saved by an old version"),
        ({"_data_files": [{"filename": "none.arrow"}]}, "cannot read it"),
        ({"_data_files": [{"filename": "dataset_info.json"}]}, "test: is not a saved dataset"),
        ("{", "test: state.json is not JSON"),
        ([], "test: state.json is no JSON object"),
    ],
)
def test_a_broken_dataset_is_one_error(tmp_path: Path, change: Any, why: str) -> None:
    shutil.copytree(TICKETS / "test", tmp_path / "test")
    path = tmp_path / "test" / "state.json"
    if isinstance(change, dict):
        change = json.loads(path.read_text()) | change
    path.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(ConfigError, match=why):
        survey(tmp_path / "test", on_bad=OnBadInput.SKIP)


def test_a_folder_of_parquet_files_is_read_by_their_names(tmp_path: Path) -> None:
    for name, n in [("part-2.parquet", 3), ("part-1.parquet", 1), ("_other.txt", 9)]:
        parquet.write_table(pyarrow.table({"n": [n, n + 1]}), tmp_path / name)
    entries = list(read_inputs(tmp_path))
    assert [(entry.id, entry.item) for entry in entries if isinstance(entry, Input)] == [
        ("1", {"n": 1}),
        ("2", {"n": 2}),
        ("3", {"n": 3}),
        ("4", {"n": 4}),
    ]


def test_a_folder_of_something_else_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder without a dataset: neither"):
        survey(tmp_path, on_bad=OnBadInput.SKIP)


def test_what_json_lacks_becomes_text_or_is_a_bad_input(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "day": [datetime.date(2026, 1, 2), None],
            "price": [Decimal("1.50"), None],
            "nested": [[{"at": datetime.time(1, 2)}], []],
            "score": [0.5, float("nan")],
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    good, bad = read_inputs(tmp_path / "in.parquet")
    assert good == Input(
        "1",
        0,
        {"day": "2026-01-02", "price": "1.50", "nested": [{"at": "01:02:00"}], "score": 0.5},
    )
    assert isinstance(bad, BadInput)
    assert bad.why.startswith("in.parquet:2: holds what JSON cannot (")


def test_a_dataset_travels_whole_with_a_submitted_job(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    inside = pack(tmp_path / "project", TICKETS / "train", tmp_path / "package.zip")
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        package.extractall(tmp_path / "there")
    assert survey(tmp_path / "there" / inside, on_bad=OnBadInput.STOP) == Survey(5, 0)
