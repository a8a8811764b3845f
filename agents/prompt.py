"""A user's prompt -> messages of the Messages API."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from anthropic.types import Message

from agentcloud.cluster.errors import AgentError

MessageDict: TypeAlias = dict[str, Any]
#: Text, content blocks of one user message, or whole messages with their roles.
Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
#: A file, the bytes of one, or an https URL.
Image: TypeAlias = Path | bytes | str

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


def to_messages(prompt: Prompt, images: Sequence[Image] = ()) -> list[MessageDict]:
    """The messages of a request; images go before the text of the last user message.

    Raises:
        AgentError: the prompt is empty, or an image cannot be read or is of an unknown kind.
    """
    if isinstance(prompt, str):
        messages: list[MessageDict] = [{"role": "user", "content": prompt}]
    elif not prompt:
        raise AgentError("the prompt is empty; pass text, content blocks or messages")
    elif all("role" in part for part in prompt):
        messages = [dict(part) for part in prompt]
    else:
        messages = [{"role": "user", "content": [dict(part) for part in prompt]}]
    if images:
        last = messages[-1]
        messages[-1] = {
            **last,
            "content": [*(_image_block(i) for i in images), *_blocks(last["content"])],
        }
    return messages


def answer_message(message: Message) -> MessageDict:
    """An answer as the assistant message of the next request, thinking and signatures kept."""
    content = [block.model_dump(mode="json", exclude_none=True) for block in message.content]
    return {"role": "assistant", "content": content}


def answer_text(message: Message) -> str:
    """The text of an answer, without thinking and tool calls."""
    return "".join(block.text for block in message.content if block.type == "text")


def _blocks(content: str | list[MessageDict]) -> list[MessageDict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _image_block(image: Image) -> MessageDict:
    if isinstance(image, str):
        if image.startswith(("https://", "http://")):
            return {"type": "image", "source": {"type": "url", "url": image}}
        image = Path(image)
    if isinstance(image, Path):
        try:
            data = image.read_bytes()
        except OSError as error:
            raise AgentError(f"cannot read image {image} ({error.strerror})") from None
    else:
        data = image
    source = {
        "type": "base64",
        "media_type": _media_type(data, image),
        "data": base64.b64encode(data).decode(),
    }
    return {"type": "image", "source": source}


def _media_type(data: bytes, image: Image) -> str:
    for magic, media_type in _MAGIC:
        if data.startswith(magic):
            return media_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    named = str(image) if isinstance(image, Path) else "given as bytes"
    raise AgentError(f"image {named} is not PNG, JPEG, GIF or WebP; convert it first")
