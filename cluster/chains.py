"""Pure: fleet.yaml's `fallbacks:` followed to their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def chains(fallbacks: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Every key's whole chain, each name once.

    Raises:
        ValueError: following one comes back to where it began.
    """
    return {name: tuple(_follow(name, fallbacks, (name,))) for name in fallbacks}


def _follow(
    name: str, fallbacks: Mapping[str, Sequence[str]], path: tuple[str, ...]
) -> dict[str, None]:
    found: dict[str, None] = {}
    for after in fallbacks.get(name, ()):
        if after in path:
            circle = " -> ".join((*path[path.index(after) :], after))
            raise ValueError(f"fallbacks: {circle} goes round in a circle; take one of them out")
        found[after] = None
        found |= _follow(after, fallbacks, (*path, after))
    return found
