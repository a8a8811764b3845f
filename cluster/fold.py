"""Pure: the events of one stream -> the message that they make.

Works on the events as plain dicts. anthropic's own accumulation builds typed objects for every
event, which costs about as much CPU as the whole request does; this builds the message once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anthropic.types import Message
from jiter import from_json
from pydantic import ValidationError

#: Where each kind of delta that carries text keeps it, and the key of the block it belongs to.
_TEXT_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("partial_json", "input"),
}
#: Blocks whose `input` comes as JSON text in pieces.
_JSON_KEY = "input"


class MessageFold:
    """One message as far as its events have come.

    Attributes:
        started: `message_start` has come: the prompt has been taken, so it may cost money.
        has_delta: content has begun to arrive.
        is_complete: `message_stop` has come.
    """

    def __init__(self) -> None:
        self.started = False
        self.has_delta = False
        self.is_complete = False
        self._message: dict[str, Any] = {}
        self._blocks: list[dict[str, Any]] = []
        #: Per block: the key that is being filled and its pieces, joined at the end.
        self._pieces: dict[int, tuple[str, list[str]]] = {}

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "open" if self.started else "empty"
        return f"MessageFold({state}, blocks={len(self._blocks)})"

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event.

        Raises:
            KeyError, IndexError, TypeError: the event is not one of the API's.
        """
        kind = event["type"]
        if kind == "content_block_delta":
            self.has_delta = True
            self._add_delta(event["index"], event["delta"])
        elif kind == "content_block_start":
            self._blocks.append(dict(event["content_block"]))
        elif kind == "message_start":
            self.started = True
            self._message = dict(event["message"])
            self._message["usage"] = dict(self._message.get("usage") or {})
            self._blocks = list(self._message.get("content") or [])
        elif kind == "message_delta":
            self._message.update(event["delta"])
            usage = self._message.setdefault("usage", {})
            # Counts are cumulative: they replace; what is left out keeps message_start's value.
            usage.update({k: v for k, v in (event.get("usage") or {}).items() if v is not None})
        elif kind == "message_stop":
            self.is_complete = True

    def _add_delta(self, index: int, delta: Mapping[str, Any]) -> None:
        kind = delta["type"]
        if kind in _TEXT_DELTAS:
            source, target = _TEXT_DELTAS[kind]
            if index not in self._pieces:
                given = self._blocks[index].get(target)
                self._pieces[index] = (target, [given] if given and isinstance(given, str) else [])
            self._pieces[index][1].append(delta[source])
        elif kind == "signature_delta":
            self._blocks[index]["signature"] = delta["signature"]
        elif kind == "citations_delta":
            block = self._blocks[index]
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]

    def as_dict(self) -> dict[str, Any]:
        """The message so far, as the API would give it.

        A tool's input that was cut off (`max_tokens`) holds what could be read of it.

        Raises:
            ValueError: a tool's input is not JSON at all.
        """
        blocks = []
        for index, block in enumerate(self._blocks):
            if index in self._pieces:
                key, pieces = self._pieces[index]
                text = "".join(pieces)
                value = (_partial_json(text) if text else {}) if key == _JSON_KEY else text
                block = {**block, key: value}
            blocks.append(block)
        return {**self._message, "content": blocks}

    def usage(self) -> dict[str, Any] | None:
        """Usage as far as known."""
        return dict(self._message["usage"]) if self.started else None


def _partial_json(text: str) -> Any:
    return from_json(text.encode(), partial_mode=True)


def message_of(data: Mapping[str, Any]) -> Message:
    """A typed message from the API's JSON; fields newer than this client are kept, not refused."""
    try:
        return Message.model_validate(data)
    except ValidationError:
        # Validating is eight times cheaper than construct(), which takes whatever there is.
        return Message.construct(**data)
