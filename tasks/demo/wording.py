"""A wording: the phrases that tickets are put together from.

A phrase is text with two kinds of gaps. ``[a|b|c]`` stands for one of the
alternatives, picked at random; ``{product}`` and the like are filled in.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agentcloud.tasks.demo.triage import Category, Product, Urgency

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Wording:
    """Phrases of one author; two wordings have no phrase in common.

    Attributes:
        name: how it is called on the command line.
        openers: greetings and other first sentences that say nothing.
        intros: first sentences that name the product, for issues that do not.
        issues: what happened, by category; says nothing of urgency.
        urgencies: how much it matters; says nothing of the category.
        asides: sentences about another product, which is not the ticket's.
        fillers: sentences that hold no label, such as an order number.
        closers: thanks and signatures.
        mentions: ways to name each product.
    """

    name: str
    openers: tuple[str, ...]
    intros: tuple[str, ...]
    issues: Mapping[Category, tuple[str, ...]]
    urgencies: Mapping[Urgency, tuple[str, ...]]
    asides: tuple[str, ...]
    fillers: tuple[str, ...]
    closers: tuple[str, ...]
    mentions: Mapping[Product, tuple[str, ...]]


def expand(phrase: str, rng: random.Random) -> str:
    """Pick one alternative in every ``[a|b]``, the innermost first."""
    while (match := _ALTERNATIVES.search(phrase)) is not None:
        pick = rng.choice(match.group(1).split("|"))
        phrase = phrase[: match.start()] + pick + phrase[match.end() :]
    return phrase
