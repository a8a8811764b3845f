"""Prompts: text, blocks, messages, images."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from agentcloud.agents.prompt import answer_message, to_messages
from agentcloud.cluster.errors import AgentError
from tests.agents.fakes import message

PNG = b"\x89PNG\r\n\x1a\nrest"


def test_what_a_prompt_may_be() -> None:
    block = {"type": "text", "text": "hi"}
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert to_messages("hi") == [{"role": "user", "content": "hi"}]
    assert to_messages([block]) == [{"role": "user", "content": [block]}]
    assert to_messages(turns) == turns
    with pytest.raises(AgentError, match="the prompt is empty"):
        to_messages([])


def test_images_go_before_the_text_of_the_last_message(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"RIFF....WEBPrest")
    (only,) = to_messages("what is it?", [PNG, file, str(file), "https://x/y.jpg"])
    sources: list[Any] = [block["source"] for block in only["content"][:-1]]
    assert sources[0] == {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(PNG).decode(),
    }
    assert sources[1]["media_type"] == "image/webp"
    assert sources[2] == sources[1]
    assert sources[3] == {"type": "url", "url": "https://x/y.jpg"}
    assert only["content"][-1] == {"type": "text", "text": "what is it?"}


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"cannot read image .*gone\.png \(No such file"):
        to_messages("?", [tmp_path / "gone.png"])
    with pytest.raises(AgentError, match="given as bytes is not PNG, JPEG, GIF or WebP"):
        to_messages("?", [b"BM"])


def test_an_answer_goes_back_as_it_came() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    back = answer_message(message(thinking, "yes"))
    assert back == {"role": "assistant", "content": [thinking, {"type": "text", "text": "yes"}]}
