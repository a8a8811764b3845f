"""Lengths of time as people type them."""

from __future__ import annotations

import re
from typing import Final

from agentcloud.cluster.errors import ConfigError

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[smhd]?)", re.I)


def parse_duration(text: str, *, where: str) -> float:
    """Read `90`, `90s`, `15m`, `6h`, `1d`, as seconds.

    Args:
        text: what was typed.
        where: the option that it was typed for.

    Raises:
        ConfigError: it is no length of time, or is zero.
    """
    match = _DURATION.fullmatch(text.strip())
    unit = "" if match is None else match["unit"].lower()
    seconds = 0.0 if match is None else float(match["number"]) * _UNITS[unit or "s"]
    if seconds <= 0.0:
        raise ConfigError(f"{text!r} is no length of time; write 90s, 15m or 6h", where=where)
    return seconds
