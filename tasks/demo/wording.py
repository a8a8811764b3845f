"""A wording: the phrases that tickets are put together from.

A phrase is text with two kinds of gaps. ``[a|b|c]`` stands for one of the
alternatives, picked at random; ``{product}`` and the like are filled in by
`agentcloud.tasks.demo.tickets`. The phrases themselves are data: ``wordings/``.
"""

import random
import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field

from agentcloud.tasks.demo.triage import Category, Product, Urgency

WordingName: TypeAlias = Literal["training", "held-out"]
WORDING_NAMES: tuple[WordingName, ...] = get_args(WordingName)

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


class Wording(BaseModel):
    """Phrases of one author; two wordings have no phrase in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    openers: tuple[str, ...] = Field(description="greetings and such, which say nothing")
    intros: tuple[str, ...] = Field(description="name the product, for issues that do not")
    asides: tuple[str, ...] = Field(description="about another product, not the ticket's")
    fillers: tuple[str, ...] = Field(description="hold no label, such as an order number")
    closers: tuple[str, ...] = Field(description="thanks and signatures")
    issues: dict[Category, tuple[str, ...]] = Field(description="what happened; no urgency")
    urgencies: dict[Urgency, tuple[str, ...]] = Field(description="how much it matters")
    mentions: dict[Product, tuple[str, ...]] = Field(description="ways to name a product")


@cache
def load_wording(name: WordingName) -> Wording:
    """Read one of the wordings that ship with the package."""
    folder = files("agentcloud.tasks.demo") / "wordings"
    return Wording.model_validate(tomllib.loads((folder / f"{name}.toml").read_text("utf-8")))


def expand(phrase: str, rng: random.Random) -> str:
    """Pick one alternative in every ``[a|b]``, the innermost first."""
    while (match := _ALTERNATIVES.search(phrase)) is not None:
        pick = rng.choice(match.group(1).split("|"))
        phrase = phrase[: match.start()] + pick + phrase[match.end() :]
    return phrase
