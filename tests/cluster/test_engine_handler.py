"""What of an answer with calls is kept when the answer ends in the middle of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_model

RED = '<tool_call>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_call>'


# PyTorch's own, when vllm is imported into the tests' process.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("answer", "calls", "content"),
    [
        ("no call", [], "no call"),
        (RED, [("paint", '{"colour": "red"}')], None),
        ("I paint. " + RED + RED, [("paint", '{"colour": "red"}')] * 2, "I paint. "),
        (
            RED + '\n<tool_call>\n{"name": "paint", "arguments": {"colour": "gr',
            [("paint", '{"colour": "red"}'), ("paint", '{"colour": "gr')],
            None,
        ),
        (RED + '<tool_call>{"name": "pai', [("paint", '{"colour": "red"}')], None),
        ('<tool_call>{"name": "paint"', [("paint", "")], None),
        ("<tool_call>nothing", [], "<tool_call>nothing"),
        ("<tool_call>[1]</tool_call>", [], "<tool_call>[1]</tool_call>"),
        (
            '<tool_call>{"arguments": {"name": "n"}, "name": "paint"}</tool_call>',
            [("paint", '{"name": "n"}')],
            None,
        ),
    ],
)
def test_whole_calls_are_kept_beside_a_cut_one(
    tmp_path: Path, answer: str, calls: list[tuple[str, str]], content: str | None
) -> None:
    from transformers import AutoTokenizer
    from vllm.tool_parsers import ToolParserManager

    from agentcloud.cluster import engine_handler

    parser = ToolParserManager.get_tool_parser("hermes")
    assert parser.__module__ == engine_handler.__name__
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path))
    found = parser(tokenizer).extract_tool_calls(answer, None)
    assert [(each.function.name, each.function.arguments) for each in found.tool_calls] == calls
    assert (found.tools_called, found.content) == (bool(calls), content)
