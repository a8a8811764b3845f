"""JSON to a webhook, from a thread of its own: whoever sends never waits for the network.

The URL may be a secret (chat services put a token into its path): only its host is ever named.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import structlog
from pydantic import SecretStr

TIMEOUT_S: Final = 5.0
#: Waits before the second and the third try.
PAUSES_S: Final = (1.0, 5.0)
_MAX_QUEUED: Final = 1000

log = structlog.get_logger()


class Webhook:
    """Posts to one URL, in order, each up to three times."""

    def __init__(self, url: SecretStr, *, pauses_s: tuple[float, ...] = PAUSES_S) -> None:
        self._url = url
        self._pauses_s = pauses_s
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_MAX_QUEUED)
        self.sent = 0
        self.lost = 0
        threading.Thread(target=self._run, name="webhook", daemon=True).start()

    def __repr__(self) -> str:
        return f"<Webhook {self.host} sent={self.sent} lost={self.lost}>"

    @property
    def host(self) -> str:
        """The server's name; no more of the URL is shown to anybody."""
        return urlsplit(self._url.get_secret_value()).hostname or "?"

    def send(self, body: Mapping[str, Any]) -> None:
        """Queue one body; where the server is so slow that the queue is full, it is lost."""
        try:
            self._queue.put_nowait(body)
        except queue.Full:
            self.lost += 1
            log.warning("webhook is too slow, an alarm was not sent", host=self.host)

    def close(self) -> None:
        """End the thread after what is queued, unless the queue is full."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            log.warning("webhook is too slow, it is left", host=self.host)

    def _run(self) -> None:
        while (body := self._queue.get()) is not None:
            for pause_s in (*self._pauses_s, None):
                why = self._post(body)
                if why is None:
                    self.sent += 1
                    break
                if pause_s is None:
                    self.lost += 1
                    log.warning("webhook failed, an alarm was not sent", host=self.host, why=why)
                else:
                    time.sleep(pause_s)

    def _post(self, body: Mapping[str, Any]) -> str | None:
        """Why it failed; None: it did not."""
        try:
            answer = requests.post(
                self._url.get_secret_value(), json=body, timeout=TIMEOUT_S, allow_redirects=False
            )
        except (requests.RequestException, ValueError) as error:
            return type(error).__name__  # its text holds the URL
        return None if 200 <= answer.status_code < 300 else f"HTTP {answer.status_code}"
