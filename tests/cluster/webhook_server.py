"""A real HTTP server that takes alarms."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: In the path of its URL; must be in no log line.
SECRET = "hook-canary-51c0"


@dataclass
class Received:
    """What the server got; `statuses` are its next answers, 200 when none is left."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    tries: int = 0


@contextmanager
def webhook_server(*statuses: int) -> Iterator[Received]:
    """Listen on a free port of this machine."""
    received = Received(statuses=list(statuses))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == f"/{SECRET}"
            received.tries += 1
            status = received.statuses.pop(0) if received.statuses else 200
            if status == 200:
                received.bodies.append(body)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    received.url = f"http://127.0.0.1:{server.server_port}/{SECRET}"
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
