"""A sandbox as a child process: started, waited for, and ended with its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

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
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C goes to whoever started it, who then ends it in order.
            start_new_session=True,
        )
        self._url: str | None = None

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
        """Read its lines of JSON up to the one that holds `key`."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for line in self._process.stdout:
            if line.startswith("{") and key in (said := json.loads(line)):
                return said[key]
        last = self._process.stderr.read().strip().splitlines()
        raise ConfigError(f"the sandbox did not start: {last[-1] if last else 'no reason given'}")

    def close(self) -> None:
        """End it; safe to call twice."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
