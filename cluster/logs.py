"""Logs: one JSON object a line with the ids bound, or readable lines on a terminal.

Processes of ours call `configure_logs` once. In Ray actors the lines go to stderr, which Ray keeps
in the session's log folder and shows in its dashboard.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

from agentcloud.cluster.errors import ConfigError

#: `AGENTCLOUD_LOG=json|console` and `AGENTCLOUD_LOG_LEVEL=debug|info|warning|error`.
FORMAT_ENV = "AGENTCLOUD_LOG"
LEVEL_ENV = "AGENTCLOUD_LOG_LEVEL"

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logs(level: str = "info", **ids: str) -> None:
    """Set this process's logging up.

    JSON unless stderr is a terminal, or as `AGENTCLOUD_LOG` says.

    Args:
        level: the least that is shown, unless `AGENTCLOUD_LOG_LEVEL` says otherwise.
        ids: bound to every line (`actor="scheduler"`).

    Raises:
        ConfigError: one of the two variables holds an unknown value.
    """
    chosen = os.environ.get(FORMAT_ENV) or ("console" if sys.stderr.isatty() else "json")
    level = os.environ.get(LEVEL_ENV, level).lower()
    if chosen not in ("json", "console"):
        raise ConfigError(f"must be json or console (given: {chosen!r})", where=FORMAT_ENV)
    if level not in _LEVELS:
        raise ConfigError(
            f"must be one of {', '.join(_LEVELS)} (given: {level!r})", where=LEVEL_ENV
        )
    last: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if chosen == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _ids_of_process(ids),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        # Looked up at every line: a test or a notebook may replace it.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def quiet_unless_configured() -> None:
    """For clients inside a user's program: warnings only, on stderr, unless it set structlog up."""
    if not structlog.is_configured():
        configure_logs(level="warning")


@contextmanager
def bound_ids(**ids: str | None) -> Iterator[None]:
    """Bind ids (`job`, `task`, `call`, `endpoint`) to every line logged inside, in this task too.

    Ids that are None are left out.
    """
    with structlog.contextvars.bound_contextvars(**{k: v for k, v in ids.items() if v is not None}):
        yield


def _ids_of_process(ids: dict[str, str]) -> structlog.typing.Processor:
    def add(
        _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        for name, value in ids.items():
            event.setdefault(name, value)
        return event

    return add
