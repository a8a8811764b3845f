"""A seeded generator of support tickets with their true labels.

Same seed and wording, same tickets, on any machine::

    python -m agentcloud.tasks.demo.tickets --n 240 --seed 7 --wording held-out
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agentcloud.tasks.demo.triage import CATEGORIES, PRODUCTS, URGENCIES, Product, Triage
from agentcloud.tasks.demo.wording import (
    WORDING_NAMES,
    Wording,
    WordingName,
    expand,
    load_wording,
)

MIN_WORDS = 20
MAX_WORDS = 60

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS = ("January", "March", "April", "June", "August", "October", "November")
_KEEPS_TWO_ISSUES = 0.35
_HAS_OPENER = 0.5
_HAS_ASIDE = 0.35
_HAS_CLOSER = 0.6


@dataclass(frozen=True, slots=True)
class Ticket:
    """One support ticket: 20 to 60 words, and the labels it was written for."""

    id: str
    text: str
    expected: Triage

    def to_dict(self) -> dict[str, Any]:
        """The ticket as a line of a JSONL file."""
        return {"id": self.id, "text": self.text, "expected": self.expected.model_dump()}


def generate(n: int, *, seed: int, wording: WordingName) -> Iterator[Ticket]:
    """Yield ``n`` tickets; every label is equally likely.

    Args:
        n: how many tickets.
        seed: the same seed gives the same tickets.
        wording: whose phrases they are written with.
    """
    rng = random.Random(f"{seed}/{wording}")  # noqa: S311 - not for secrets
    phrases = load_wording(wording)
    for number in range(n):
        expected = Triage(
            category=rng.choice(CATEGORIES),
            urgency=rng.choice(URGENCIES),
            product=rng.choice(PRODUCTS),
        )
        yield Ticket(f"ticket-{number:04d}", write_ticket(expected, phrases, rng), expected)


def write_ticket(expected: Triage, wording: Wording, rng: random.Random) -> str:
    """Write one ticket for the given labels."""
    while True:
        text = " ".join(_sentences(expected, wording, rng))
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            return text


def _sentences(expected: Triage, wording: Wording, rng: random.Random) -> list[str]:
    """Draw the ticket's sentences: the issue, its urgency, and what surrounds them."""
    n_issues = 2 if rng.random() < _KEEPS_TWO_ISSUES else 1
    drawn = rng.sample(wording.issues[expected.category], n_issues)
    issues = [expand(issue, rng) for issue in drawn]  # not every alternative names the product
    if not any("{product}" in issue for issue in issues):
        issues.insert(0, rng.choice(wording.intros))
    urgency = rng.choice(wording.urgencies[expected.urgency])

    # People put the urgency last, mostly, but not always.
    body = [*issues, urgency] if rng.random() < 0.8 else [urgency, *issues]
    if rng.random() < _HAS_ASIDE:
        body.insert(rng.randrange(len(body) + 1), rng.choice(wording.asides))
    for filler in rng.sample(wording.fillers, rng.choice((0, 0, 1, 1, 2))):
        body.insert(rng.randrange(len(body) + 1), filler)
    if rng.random() < _HAS_OPENER:
        body.insert(0, rng.choice(wording.openers))
    if rng.random() < _HAS_CLOSER:
        body.append(rng.choice(wording.closers))
    return [fill(phrase, expected.product, wording, rng) for phrase in body if phrase]


def fill(phrase: str, product: Product, wording: Wording, rng: random.Random) -> str:
    """Fill the gaps of one phrase, for a ticket about ``product``."""
    if not phrase:
        return ""
    other = rng.choice([candidate for candidate in PRODUCTS if candidate != product])
    phrase = expand(phrase, rng)
    # The mentions first: they hold gaps themselves.
    for gap, named in (("{product}", product), ("{other}", other)):
        while gap in phrase:
            phrase = phrase.replace(gap, rng.choice(wording.mentions[named]), 1)
    for gap, value in (
        ("{n}", str(rng.randint(2, 9))),
        ("{order}", f"#{rng.randint(10_000, 99_999)}"),
        ("{code}", str(rng.randint(100, 999))),
        ("{version}", f"{rng.randint(1, 9)}.{rng.randint(0, 9)}"),
        ("{year}", str(rng.randint(2015, 2025))),
        ("{amount}", f"${rng.randint(5, 400)}"),
        ("{amount2}", f"${rng.randint(5, 400)}"),
        ("{day}", rng.choice(_DAYS)),
        ("{month}", rng.choice(_MONTHS)),
    ):
        phrase = phrase.replace(gap, value)
    return phrase[0].upper() + phrase[1:]


def main(argv: Sequence[str] | None = None) -> None:
    """Write tickets as JSONL to standard output."""
    parser = argparse.ArgumentParser(prog="python -m agentcloud.tasks.demo.tickets")
    parser.add_argument("--n", type=int, default=240, help="how many tickets (default 240)")
    parser.add_argument("--seed", type=int, default=7, help="which tickets (default 7)")
    parser.add_argument("--wording", choices=WORDING_NAMES, default="held-out")
    arguments = parser.parse_args(argv)
    for ticket in generate(arguments.n, seed=arguments.seed, wording=arguments.wording):
        sys.stdout.write(json.dumps(ticket.to_dict()) + "\n")


if __name__ == "__main__":
    main()
