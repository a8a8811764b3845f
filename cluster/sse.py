"""Pure: the bytes of an event stream -> its events as dicts.

The anthropic client's decoder walks every line in Python and builds an object for each; for a
short answer it costs as much as the HTTP request. Of an event only its JSON matters here, because
every event of the Messages API repeats its name in its `type`.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

_DATA = b"data:"


class SseReader:
    """Cuts chunks of bytes, wherever they were cut before, into events.

    Lines end in LF or CR LF; a lone CR, which the standard allows too, no server sends.
    """

    def __init__(self) -> None:
        self._rest = b""

    def __repr__(self) -> str:
        return f"SseReader(rest={len(self._rest)} bytes)"

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """The events that `chunk` completes, oldest first.

        Raises:
            ValueError: the data of an event is not JSON.
        """
        text = self._rest + chunk
        if b"\r" in text:
            # Half a line's end at the end of a chunk stays in `_rest` until its \n has come.
            text = text.replace(b"\r\n", b"\n")
        *blocks, self._rest = text.split(b"\n\n")
        events = []
        for block in blocks:
            data = _data_of(block)
            if data:
                events.append(from_json(data))
        return events


def _data_of(block: bytes) -> bytes:
    # The API's own form, `event: NAME\ndata: JSON`, needs no walk over lines.
    at = block.find(_DATA)
    if at >= 0 and (at == 0 or block[at - 1 : at] == b"\n") and block.find(b"\n", at) < 0:
        return block[at + len(_DATA) :].strip()
    lines = [line[len(_DATA) :] for line in block.split(b"\n") if line.startswith(_DATA)]
    return b"\n".join(line.removeprefix(b" ") for line in lines)
