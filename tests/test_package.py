"""The built wheel, in a clean environment, beside a user's own `tasks.py` and `agents/`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).parent / "uv"

#: Tests of the scheduler's core, properties and cases.
CORE = (
    *(f"tests/property/test_{name}.py" for name in ("budget", "limits", "restart", "scheduler")),
    "tests/cluster/test_scheduler.py",
)

PROGRAM = """
import tasks, agents, cluster
assert tasks.MINE and agents.MINE and cluster.MINE
import agentcloud.cluster.client, agentcloud.agents, agentcloud.tasks.cli
from agentcloud.cluster.plan_data import gpu_kind
from agentcloud.cluster.embedded import embedded_model_path
assert gpu_kind("H100-80G").memory_bytes > 79e9
assert (embedded_model_path("embedded:triage-small") / "config.json").is_file()
for module in (agentcloud.cluster, agentcloud.agents, agentcloud.tasks):
    assert "site-packages" in module.__file__, module.__file__
print("imported")
"""


def _run(*command: object, cwd: Path, **env: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=kept | env, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # From a copy of what git would commit, so that nothing untracked slips into the wheel.
    source = tmp_path_factory.mktemp("source")
    files = _run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    _run(
        sys.executable, "-m", "build", "--wheel", "--installer", "uv", "-o", out, source,
        cwd=out, AGENTCLOUD_OPTIMIZE="0",  # Optimized it takes a minute more, and does the same.
    )  # fmt: skip
    return next(out.glob("agentcloud-*.whl"))


def test_the_wheel_holds_one_namespace(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    compiled = {name for name in tops if "mypyc" in name}
    assert tops - compiled == {"agentcloud", next(t for t in tops if t.endswith(".dist-info"))}
    assert {name.split("/")[1] for name in names if name.startswith("agentcloud/")} == {
        "cluster", "agents", "tasks",
    }  # fmt: skip


@pytest.mark.timeout(400)
def test_it_imports_beside_a_users_own_tasks_and_agents(wheel: Path, tmp_path: Path) -> None:
    venv, mine = tmp_path / "venv", tmp_path / "mine"
    (mine / "agents").mkdir(parents=True)
    (mine / "tasks.py").write_text("MINE = True\n")
    (mine / "cluster.py").write_text("MINE = True\n")
    (mine / "agents" / "__init__.py").write_text("MINE = True\n")
    _run(UV, "venv", "-q", "--python", sys.executable, venv, cwd=tmp_path)
    _run(
        UV, "pip", "install", "-q", "--python", venv / "bin" / "python",
        "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path,
    )  # fmt: skip
    assert "imported" in _run(venv / "bin" / "python", "-c", PROGRAM, cwd=mine)
    assert "submit" in _run(venv / "bin" / "agentcloud", "--help", cwd=mine, COLUMNS="200")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_its_core_is_compiled_and_decides_alike(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    where = "import agentcloud.cluster.scheduler as s; print(s.__file__)"
    path = str(tmp_path)
    assert _run(sys.executable, "-c", where, cwd=ROOT, PYTHONPATH=path).strip().endswith(".so")
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    passed = _run(*pytest_, *CORE, cwd=ROOT, PYTHONPATH=path)
    assert " passed" in passed
    assert "failed" not in passed
