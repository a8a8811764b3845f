"""Who may import what: read from the source, so that nothing need be importable here.

And, in fresh interpreters, which processes do without the packages that take long to load.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Left may not import right.
LAYERS = ("cluster", "agents", "tasks")
CODE = [*LAYERS, "bench", "examples", "scripts", "tests"]
VENDOR_CLIENTS = {"Anthropic", "AsyncAnthropic", "DefaultAioHttpClient"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every import of a file, those inside functions too: module, and names taken from it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), tuple(a.name for a in node.names)


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def importers(package: str, *folders: str) -> set[str]:
    return {
        shown(path)
        for path in sources(*folders)
        if any(is_under(module, package) for module, _ in imports(path))
    }


def test_there_is_something_to_look_at() -> None:
    assert all(sources(layer) for layer in LAYERS)
    assert importers("agentcloud.cluster", "agents")


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_layers_import_downwards_only(level: int) -> None:
    for above in LAYERS[level + 1 :]:
        assert importers(f"agentcloud.{above}", LAYERS[level]) == set()


def test_only_the_engine_imports_vllm() -> None:
    assert importers("vllm", *LAYERS) == {"cluster/engine.py", "cluster/engine_handler.py"}


def test_only_mcp_tools_import_mcp() -> None:
    names = ("mcp", "mcp_connection", "mcp_servers", "mcp_shared")
    users = {f"agents/{name}.py" for name in names}
    assert importers("mcp", *LAYERS) | importers("mcp_types", *LAYERS) == users


def test_only_hosted_calls_use_anthropic_s_clients() -> None:
    users = {
        shown(path)
        for path in sources(*LAYERS)
        for module, names in imports(path)
        if is_under(module, "anthropic") and VENDOR_CLIENTS & set(names)
    }
    assert users == {
        "cluster/hosted.py",
        "cluster/hosted_batches.py",
        "cluster/hosted_clients.py",
    }
    # Nor by way of the module's name.
    for path in sources(*LAYERS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                by_name = node.value.id == "anthropic" and node.attr in VENDOR_CLIENTS
                assert not by_name, f"{shown(path)}:{node.lineno}"


@pytest.mark.parametrize("folder", CODE)
def test_our_packages_are_imported_by_their_full_names(folder: str) -> None:
    for path in sources(folder):
        for module, _ in imports(path):
            assert module.split(".")[0] not in LAYERS, f"{shown(path)} imports {module}"
            assert not module.startswith("."), f"{shown(path)} imports {module}"


#: What a module's process never uses; `anthropic` takes a second of CPU to load.
SPARED = {
    "agentcloud.cluster.scheduler_actor": ["anthropic"],
    "agentcloud.cluster.cache_actor": ["anthropic"],
    "agentcloud.cluster.fleet": ["anthropic", "sqlalchemy"],
    "agentcloud.cluster.connect": ["sqlalchemy"],
    "agentcloud.tasks.ledger_actor": ["anthropic"],
    "agentcloud.tasks.supervisor": ["anthropic", "sqlalchemy"],
    "agentcloud.tasks.worker": ["sqlalchemy"],
    "agentcloud.tasks.job_main": ["anthropic"],
    "agentcloud.tasks.cli": ["anthropic", "sqlalchemy", "ray"],
}


@pytest.mark.parametrize("module", SPARED)
def test_processes_load_nothing_heavy_that_they_do_not_use(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(SPARED[module])}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr
