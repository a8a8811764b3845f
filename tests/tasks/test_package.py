"""What travels to a cluster with a job, and what never does."""

import zipfile
from pathlib import Path

import pytest

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks import package
from agentcloud.tasks.package import pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "agent.py": "x = 1",
        "lib/helper.py": "y = 2",
        ".gitignore": "*.jsonl\nbig/\n",
        ".rayignore": "notes.txt\n",
        "data/in.jsonl": '{"id": 1}\n',
        "big/file.bin": "0" * 100,
        "notes.txt": "private",
        ".env": "ANTHROPIC_API_KEY=secret",
        "server.key": "secret",
        ".git/config": "x",
        ".venv/bin/python": "x",
        "lib/__pycache__/helper.pyc": "x",
    }
    for name, content in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "project"


def test_the_folder_travels_without_keys_and_ignored_files_but_with_its_input(
    folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "p.zip"
    inside = pack(folder, folder / "data/in.jsonl", target)
    with zipfile.ZipFile(target) as packed:
        assert sorted(packed.namelist()) == [
            ".agentcloud-input/in.jsonl",
            ".gitignore",
            ".rayignore",
            "agent.py",
            "lib/helper.py",
        ]
        assert packed.read(inside.as_posix()) == b'{"id": 1}\n'


def test_the_same_content_makes_the_same_package(folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1.zip", tmp_path / "2.zip"
    pack(folder, folder / "data/in.jsonl", one)
    (folder / "agent.py").touch()
    pack(folder, folder / "data/in.jsonl", two)
    assert one.read_bytes() == two.read_bytes()


def test_a_folder_too_large_is_refused_and_says_what_is_large(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MAX_PACKAGE_BYTES", 2 << 20)
    (folder / "models").mkdir()
    (folder / "models" / "weights.bin").write_bytes(b"0" * (3 << 20))
    with pytest.raises(ConfigError, match=r"larger than 2 MiB \(so far: models \(3 M.*rayignore"):
        pack(folder, folder / "data/in.jsonl", tmp_path / "p.zip")
