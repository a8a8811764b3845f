"""Pure: what calls usually use of a limit, where holding their worst case would waste it.

Output: a server counts the tokens that are made, and lets a call in while one token is left. Held
at `max_tokens`, a limit of 8,000 a minute carries two calls of 4,096 at a time, though they may
answer with 50 tokens each. So the usual length is held: mean and one standard deviation of calls
with like `max_tokens`. Together such holds are above what is made (a call in flight has not made
all of it), and a surprise is paid back before the next call. What it costs: part of the limit is
left unused while answers take longer than the server's bucket takes to fill (a minute, or less
where bursts are limited).

Input: a server takes a call's uncached prompt when it arrives, so less than the whole is held only
for a prompt whose beginning it has just been seen to read from its cache.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import sqrt
from typing import Final

#: Calls after which their usual length is known.
_KNOWN: Final = 8
_BLEND: Final = 1 / 16
#: The API keeps a cached prompt for five minutes after its last use.
_CACHED_S: Final = 240.0
_PREFIXES: Final = 1024
#: Of the uncached share of a prompt that was seen last: conversations grow.
_MARGIN: Final = 1.25


@dataclass(slots=True)
class _Lengths:
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def learn(self, tokens: float) -> None:
        self.count += 1
        blend = max(_BLEND, 1.0 / self.count)
        off = tokens - self.mean
        self.mean += blend * off
        self.variance = (1.0 - blend) * (self.variance + blend * off * off)


class UsualUse:
    """Learned from settled calls of one account and model family."""

    __slots__ = ("_lengths", "_uncached")

    def __init__(self) -> None:
        self._lengths: dict[int, _Lengths] = {}
        #: First chunk of a prompt -> share of it that was not cached, and when.
        self._uncached: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def output_tokens(self, max_output_tokens: float) -> float:
        """What to hold for an answer; its most until its like is known."""
        known = self._lengths.get(int(max_output_tokens).bit_length())
        if known is None or known.count < _KNOWN:
            return max_output_tokens
        return min(max_output_tokens, known.mean + sqrt(known.variance) + 1.0)

    def input_tokens(self, input_tokens: float, prefix: int | None, now_s: float) -> float:
        """What to hold for a prompt with this first chunk."""
        if prefix is None or prefix not in self._uncached:
            return input_tokens
        share, seen_s = self._uncached[prefix]
        return input_tokens if now_s - seen_s > _CACHED_S else min(1.0, share) * input_tokens

    def learn(
        self,
        *,
        max_output_tokens: float,
        output_tokens: float,
        estimated_tokens: float,
        counted_tokens: float,
        cached_tokens: float,
        prefix: int | None,
        now_s: float,
    ) -> None:
        """Take in an answered call; `counted_tokens` of its prompt were not read from a cache."""
        lengths = self._lengths.setdefault(int(max_output_tokens).bit_length(), _Lengths())
        lengths.learn(output_tokens)
        if prefix is None or estimated_tokens <= 0:
            return
        if cached_tokens <= 0:
            self._uncached.pop(prefix, None)
            return
        self._uncached[prefix] = _MARGIN * counted_tokens / estimated_tokens, now_s
        self._uncached.move_to_end(prefix)
        if len(self._uncached) > _PREFIXES:
            self._uncached.popitem(last=False)

    def __repr__(self) -> str:
        return f"<UsualUse sizes={len(self._lengths)} prefixes={len(self._uncached)}>"
