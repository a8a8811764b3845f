"""docs/peers-tests.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = sorted(
    set(
        re.findall(
            r"`(tests/[\w/]+\.py)::(test_\w+)`", (ROOT / "docs" / "peers-tests.md").read_text()
        )
    )
)


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_named_test_is_there(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    there = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    assert {name for named_in, name in NAMED if named_in == file} <= there
