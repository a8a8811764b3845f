"""A sandbox as a child process: started, waited for, and ended with its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Any, Self

from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sandbox.settings import SandboxConfig

#: SIGTERM ends a sandbox at once; one with an engine has processes to end.
_STOP_TIMEOUT_S = 15.0


class SandboxProcess:
    """`with SandboxProcess() as sandbox: … sandbox.url`.

    It starts at once and is waited for when `url` is asked for (or `wait` called), so that other
    things can start meanwhile.

    Args:
        config: what it serves; None is the default.
        model: `embedded:NAME` or a model folder that answers; None: synthetic answers.
    """

    def __init__(self, config: SandboxConfig | None = None, *, model: str | None = None) -> None:
        command = [
            sys.executable, "-m", "agentcloud.cluster.sandbox",
            "--port", "0", "--parent-pid", str(os.getpid()),
        ]  # fmt: skip
        if config is not None:
            command += ["--config", config.model_dump_json()]
        if model is not None:
            command += ["--model", model]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C goes to whoever started it, who then ends it in order.
            start_new_session=True,
        )
        self._url: str | None = None
        self._last = "it ended without a word"
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    @property
    def url(self) -> str:
        """Its base URL; waits until it listens (an engine may still be starting behind it).

        Raises:
            ConfigError: it did not start.
        """
        if self._url is None:
            self._url = str(self._announced("url"))
        return self._url

    def wait(self) -> None:
        """Wait until it can answer.

        Raises:
            ConfigError: its engine did not start.
        """
        _ = self.url
        self._announced("ready")

    def _announced(self, key: str) -> Any:
        """Wait for the line of JSON that holds `key`."""
        while (line := self._lines.get()) is not None:
            if line.startswith("{") and key in (said := json.loads(line)):
                return said[key]
            if line.strip():
                self._last = line.strip()
        raise ConfigError(f"the sandbox did not start: {self._last}")

    def _read(self, pipe: IO[str]) -> None:
        # To the end, so that a talkative engine never finds the pipe full.
        with pipe:
            for line in pipe:
                self._lines.put(line)
        self._lines.put(None)

    def close(self) -> None:
        """End it; safe to call twice."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
