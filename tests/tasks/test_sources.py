"""Inputs: what is read, what is named as bad, and that reading is lazy."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.sources import BadInput, Input, Survey, read_inputs, survey
from agentcloud.tasks.spec import OnBadInput


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_jsonl_ids_come_from_the_field_else_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"id": "a", "x": 1}\n\n{"x": 2}\n{"id": 7}\n"text"\n')
    assert list(read_inputs(path)) == [
        Input("a", 0, {"id": "a", "x": 1}),
        Input("3", 1, {"x": 2}),
        Input("7", 2, {"id": 7}),
        Input("5", 3, "text"),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"x": ', "not JSON (Expecting value at column 6)"),
        (b'{"x": NaN}', "not JSON (NaN is no JSON number)"),
        (b'{"x": "\xff"}', "not UTF-8 (byte 8 of the line)"),
        (b'{"id": 1.5}', "its id is neither text nor a whole number: 1.5"),
        (b'{"id": true}', "its id is neither text nor a whole number: True"),
        (b'{"id": "a"}', "id 'a' was seen before, at line 1; ids must be unique"),
        (b"[" * 100_000, "not JSON (maximum recursion depth exceeded"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_goes_on(tmp_path: Path, line: bytes, why: str) -> None:
    path = write(tmp_path / "in.jsonl", b'{"id": "a"}\n' + line + b'\n{"id": "b"}\n')
    first, bad, last = read_inputs(path)
    assert isinstance(bad, BadInput)
    assert bad.id == "line:2"
    assert bad.why.startswith(f"in.jsonl:2: {why}")
    assert [first.id, last.id] == ["a", "b"]


def test_a_bad_line_stops_the_survey_or_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"id": "a"}\nnonsense\n')
    with pytest.raises(ConfigError, match=r"^in\.jsonl:2: not JSON .*--on-bad-input skip$"):
        survey(path, on_bad=OnBadInput.STOP)
    assert survey(path, on_bad=OnBadInput.SKIP) == Survey(total=2, bad=1)


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"id": {n}}}\n' for n in range(200_000))
    inputs = read_inputs(path)
    assert next(inputs) == Input("0", 0, {"id": 0})
    # Were it read whole, this line (which is far behind) would be there already.
    path.write_text(path.read_text().replace('{"id": 199999}', '{"id": "end"} '))
    assert list(inputs)[-1].id == "end"


def test_ids_that_are_there_twice_are_all_bad_and_the_first_says_where_it_was(
    tmp_path: Path,
) -> None:
    # A line without an id is called by its number, which another line's id may be.
    path = write(tmp_path / "in.jsonl", '{"id": "3"}\n{"id": "x"}\n{"n": 1}\n{"id": "x"}\n{}\n')
    entries = list(read_inputs(path))
    assert [entry.id for entry in entries] == ["3", "x", "line:3", "line:4", "5"]
    assert [entry.why for entry in entries if isinstance(entry, BadInput)] == [
        "in.jsonl:3: id '3' was seen before, at line 1; ids must be unique",
        "in.jsonl:4: id 'x' was seen before; ids must be unique",
    ]


def test_csv_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.csv",
        b'\xef\xbb\xbfid,text\n1,"two\nlines"\n2\n3,a,b\n4,\xff\n5,"caf\xc3\xa9"\n',
    )
    entries = list(read_inputs(path))
    assert entries[0] == Input("1", 0, {"id": "1", "text": "two\nlines"})
    assert [entry.why for entry in entries if isinstance(entry, BadInput)] == [
        "in.csv:4: 1 fields where the header has 2",
        "in.csv:5: 3 fields where the header has 2",
        "in.csv:6: not UTF-8",
    ]
    assert entries[-1] == Input("5", 4, {"id": "5", "text": "café"})


def test_csv_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "a,a\n1,2\n")
    with pytest.raises(ConfigError, match=r"in\.csv:1: two columns have the same name"):
        list(read_inputs(path))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"id": ["a", "b"], "n": [1, 2]}), path)
    assert list(read_inputs(path)) == [
        Input("a", 0, {"id": "a", "n": 1}),
        Input("b", 1, {"id": "b", "n": 2}),
    ]
    with pytest.raises(ConfigError, match="is not Parquet"):
        list(read_inputs(write(tmp_path / "bad.parquet", "text")))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("in.txt", "x", r"in\.txt: its format is not known by its name; known: \.jsonl"),
        ("none.jsonl", None, "cannot read it \\(No such file or directory\\)"),
        ("empty.jsonl", "\n\n", r"holds no inputs"),
        ("header.csv", "id,text\n", r"holds no inputs"),
    ],
)
def test_a_file_that_cannot_serve_is_one_error(
    tmp_path: Path, name: str, content: str | None, why: str
) -> None:
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(ConfigError, match=why):
        survey(tmp_path / name, on_bad=OnBadInput.SKIP)


@settings(deadline=None)  # it writes files
@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=20))
def test_any_bytes_give_one_entry_per_line_that_is_not_blank(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "in.jsonl", b"\n".join(lines))
    entries = list(read_inputs(path))
    assert len(entries) == sum(bool(line.strip()) for line in lines)
    ids = [entry.id for entry in entries]
    assert len(set(ids)) == len(ids)


@settings(deadline=None)  # it writes files
@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5))))
def test_json_items_come_through_unchanged(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, object]]
) -> None:
    items = [{k: v for k, v in item.items() if k != "id"} for item in items]
    text = "".join(json.dumps(item) + "\n" for item in items)
    path = write(tmp_path_factory.mktemp("json") / "in.jsonl", text)
    assert [entry.item for entry in read_inputs(path) if isinstance(entry, Input)] == items
