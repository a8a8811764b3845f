"""An engine's blocks told as chunks: against a model of the engine's cache."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.engine_blocks import BlockMap, Prompt
from agentcloud.cluster.prefix import Change
from agentcloud.cluster.prefix_reports import PrefixReports

BLOCK = 4
#: Prompts of tokens 0 and 1; a chunk every 4 tokens, so that chunks and blocks fall together.
PROMPTS = st.lists(st.integers(0, 1), min_size=4, max_size=24)


class Engine:
    """A cache of few blocks that evicts the longest unused one, telling each change."""

    def __init__(self, room: int, told: BlockMap) -> None:
        self.room, self.told = room, told
        self.held: OrderedDict[tuple[int, ...], None] = OrderedDict()

    def read(self, tokens: list[int]) -> None:
        whole = len(tokens) // BLOCK
        for number in range(whole):
            block = tuple(tokens[: (number + 1) * BLOCK])
            if block not in self.held:
                parent = block[:-BLOCK] or None
                self.told.stored(parent, [block], tokens[number * BLOCK :][:BLOCK], BLOCK)
            self.held[block] = None
        # The end of a prompt goes first.
        for number in reversed(range(whole)):
            self.held.move_to_end(tuple(tokens[: (number + 1) * BLOCK]))
        while len(self.held) > self.room:
            block, _ = self.held.popitem(last=False)
            self.told.removed([block])


def prompt_of(tokens: list[int]) -> Prompt:
    ends = range(BLOCK, len(tokens) + 1, BLOCK)
    prefix = tuple(hash(tuple(tokens[:end])) for end in ends)
    return Prompt(prefix, tuple(end / len(tokens) for end in ends))


def apply(known: set[int], change: Change) -> set[int]:
    return (
        set(change.added)
        if change.removed is None
        else (known | set(change.added)) - set(change.removed)
    )


@given(st.lists(st.tuples(PROMPTS, st.booleans(), st.booleans()), max_size=30), st.integers(2, 9))
def test_what_is_told_is_what_the_cache_holds_of_the_prompts(
    read: list[tuple[list[int], bool, bool]], room: int
) -> None:
    told = BlockMap()
    engine, known, chunks = Engine(room, told), set[int](), dict[int, tuple[int, ...]]()
    for tokens, asks, anew in read:
        engine.read(tokens)
        prompt = prompt_of(tokens)
        told.saw(prompt, tokens)
        # The scheduler takes for held what it sends.
        known |= set(prompt.prefix)
        for number, chunk in enumerate(prompt.prefix):
            chunks[chunk] = tuple(tokens[: (number + 1) * BLOCK])
        if asks:
            known = apply(known, told.change(anew=anew))
    known = apply(known, told.change())
    # Nothing is taken for held that is not; what was read last is known as far as it is held.
    assert all(chunks[chunk] in engine.held for chunk in known)
    if read:
        last = prompt_of(read[-1][0]).prefix
        assert {chunk for chunk in last if chunks[chunk] in engine.held} <= known


def test_everything_cleared_is_told_and_may_come_again() -> None:
    told = BlockMap()
    engine, tokens = Engine(9, told), [0, 1] * 6
    prompt = prompt_of(tokens)
    engine.read(tokens)
    told.saw(prompt, tokens)
    assert set(told.change().added) == set(prompt.prefix)
    assert told.change() == Change((), ())
    told.cleared()
    assert set(told.change().removed or ()) == set(prompt.prefix)
    engine.held.clear()
    engine.read(tokens)
    told.saw(prompt, tokens)
    assert set(told.change().added) == set(prompt.prefix)


def test_a_chunk_shorter_than_a_block_is_held_with_the_first_one() -> None:
    told = BlockMap()
    engine, tokens = Engine(9, told), [0, 1] * 6
    engine.read(tokens)
    told.saw(Prompt((1, 2), (0.1, 0.5)), tokens)
    assert set(told.change().added) == {1, 2}


def test_reports_begin_anew_whenever_one_may_be_lost() -> None:
    reports = PrefixReports()
    assert reports.wants_all("a")
    reports.take("a", Change((1,), None))
    reports.take("a", Change((2,), (1,)))
    reports.take("a", Change((), ()))
    assert not reports.wants_all("a")
    assert reports.pop() == {"a": [Change((1,), None), Change((2,), (1,))]}
    assert reports.pop() == {}
    reports.take("a", Change((3,), ()))
    reports.lost("a")
    assert reports.wants_all("a")
    assert reports.pop() == {}
    reports.take("a", None)
    reports.take("b", Change((4,), ()))
    reports.lost_all()
    assert reports.wants_all("b")
    assert reports.pop() == {}
