"""The set of ids: exact whatever comes, small, and gone from the disk with its process."""

import gc
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks import id_set
from agentcloud.tasks.id_set import IdSet

IDS = st.text(max_size=4) | st.integers(0, 200_000).map(str) | st.sampled_from(["07", "7", "²", ""])


def add_all(ids: IdSet, names: list[str]) -> None:
    for name in names:
        ids.add(name)


@settings(deadline=None)
@given(st.lists(IDS), st.lists(IDS))
def test_it_is_a_set(added: list[str], asked: list[str]) -> None:
    ids, plain = IdSet(), set[str]()
    for each in added:
        assert ids.add(each) is (each not in plain)
        plain.add(each)
    assert (len(ids), set(ids)) == (len(plain), plain)
    for each in added + asked:
        assert (each in ids) is (each in plain)


def test_ids_of_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_set, "hash", lambda text: len(text) << 41, raising=False)
    ids = IdSet()
    names = [f"n{number:03}" for number in range(900)]  # more than the first table takes
    assert all(ids.add(name) for name in names)
    assert not any(ids.add(name) for name in names)
    assert "n900" not in ids


def test_a_number_that_came_as_text_is_still_there_when_the_set_has_grown() -> None:
    ids = IdSet()
    assert ids.add("100000")  # far above what so small a set keeps as bits
    assert repr(ids) == "<IdSet of 1, 1 as text>"
    for number in range(5000):
        ids.add(str(number))
    assert "100000" in ids
    assert not ids.add("100000")
    assert len(ids) == 5001


def test_it_is_small() -> None:
    tracemalloc.start()
    try:
        ids = IdSet()
        for number in range(50_000):
            ids.add(f"ticket-{number:020}")
        by_text, _ = tracemalloc.get_traced_memory()
        for number in range(50_000):
            ids.add(str(number))
        with_numbers, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert by_text < 50_000 * 24  # a set of str: more than 120 bytes an id
    assert with_numbers - by_text < 50_000


def test_what_it_writes_has_no_name_and_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    ids = IdSet()
    for number in range(10_000):
        ids.add(f"n{number}")
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del ids
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_room_on_the_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    names = [f"n{number}" for number in range(10_000)]
    with pytest.raises(ConfigError, match=r"cannot keep task ids there .* set TMPDIR"):
        add_all(IdSet(), names)
