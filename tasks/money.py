"""Amounts of money as people type them."""

from __future__ import annotations

import re
from decimal import Decimal

from agentcloud.cluster.errors import ConfigError

_AMOUNT = re.compile(r"\$?\s*(?P<amount>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>usd|\$|cents?|ct)?", re.I)


def parse_usd(text: str, *, where: str) -> Decimal:
    """Read `2usd`, `$2`, `0.50`, `50 cents`.

    Args:
        text: what was typed.
        where: the option that it was typed for.

    Raises:
        ConfigError: it is no amount, or is zero.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no amount of money; write 2usd, $2 or 0.50", where=where)
    amount = Decimal(match["amount"])
    if (match["unit"] or "").lower().startswith("c"):
        amount /= 100
    if amount == 0:
        raise ConfigError(
            "a budget of zero allows no call; give an amount, or leave it out for no limit",
            where=where,
        )
    return amount


def show_usd(amount: Decimal | None) -> str:
    """An amount for people: `$1.23`, small ones to two figures, `?` when unknown."""
    if amount is None:
        return "?"
    if amount == 0 or amount >= Decimal("0.1"):
        return f"${amount:.2f}"
    digits = max(2, 1 - amount.adjusted())
    return f"${amount:.{digits}f}"
