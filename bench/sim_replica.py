"""A model of one vLLM replica: continuous batching, chunked prefill, prefix cache, KV memory.

A step computes one token of every running sequence and, with what is left of its token budget,
parts of the prompts of those admitted, first come first served (vLLM's v1 scheduler). It takes

    step_s + prefill_s x prompt tokens + attend_s x (prompt tokens x context before them)
           + sequence_s x running sequences + read_s x tokens of context that they read

seconds. `bench/sim_calibrate.py` fits these five to the real engine. Steps without prompt tokens
are alike and are run many at a time.

Left out: swapping, speculative decoding, pipeline bubbles. Preemption recomputes, as vLLM does.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from bench.sim_traces import BLOCK_TOKENS, Arrival

#: Steps without prompt tokens that are run at once, at most.
_STRIDE: Final = 32


@dataclass(frozen=True, slots=True)
class Speed:
    """What a replica's steps take, seconds, and what fits.

    Attributes:
        kv_tokens: tokens of KV cache.
        max_sequences: running at once (`max_num_seqs`).
        budget_tokens: computed in one step (`max_num_batched_tokens`).
    """

    step_s: float
    prefill_s: float
    attend_s: float
    sequence_s: float
    read_s: float
    kv_tokens: int
    max_sequences: int = 256
    budget_tokens: int = 8192

    def alone_s(self, prompt_tokens: int, cached_tokens: int = 0) -> float:
        """Time to first token on an idle replica."""
        left, done, total_s = prompt_tokens - cached_tokens, cached_tokens, 0.0
        while left > 0:
            part = min(left, self.budget_tokens)
            total_s += self.step_s + part * (self.prefill_s + self.attend_s * (done + part / 2))
            left -= part
            done += part
        return total_s


#: An 8-billion-parameter model at 16 bits on one H100, from arithmetic and not measured: 16 GFLOP a
#: prompt token at half of 990 TFLOP/s; 16 GB of weights read a step at 80% of 3.35 TB/s, and 2 ms
#: of overhead; 131 kB of KV cache a token, 56 GB for it; limits of a step as vLLM sets them there.
H100_8B: Final = Speed(0.008, 32e-6, 1.3e-9, 32e-6, 49e-9, 430_000, 1024)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on a replica."""

    key: int
    arrival: Arrival
    arrived_s: float
    left_tokens: int
    prefill_left: int = 0
    context_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: float | None = None
    pinned: int = 0


class Replica:
    """One replica; `next_s` says when `advance` must be called at the latest."""

    def __init__(self, name: str, speed: Speed) -> None:
        self.name = name
        self.speed = speed
        self.now_s = 0.0
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self.finished: list[tuple[Sequence, float]] = []
        self.evicted: list[int] = []
        self.stored: list[int] = []
        self.prompt_tokens = 0
        self.hit_tokens = 0
        self.output_tokens = 0
        self.busy_s = 0.0
        self._free: OrderedDict[int, None] = OrderedDict()
        self._pins: dict[int, int] = {}
        self._private_tokens = 0
        self._step_ends_s: float | None = None
        self._steps = 0
        self._chunks: list[tuple[Sequence, int]] = []

    # -- what a scheduler may see of it

    @property
    def requests(self) -> int:
        """Requests on it, waiting ones included."""
        return len(self.waiting) + len(self.prefilling) + len(self.decoding)

    @property
    def prompt_tokens_queued(self) -> int:
        """Prompt tokens not yet computed; cached ones of waiting requests count."""
        waiting = sum(each.arrival.prompt_tokens for each in self.waiting)
        return waiting + sum(each.prefill_left for each in self.prefilling)

    @property
    def kv_used_fraction(self) -> float:
        """Share of the KV cache that running sequences hold."""
        return self._used_tokens() / self.speed.kv_tokens

    def holds(self, blocks: tuple[int, ...]) -> int:
        """Blocks of a prompt that are cached, from its front."""
        count = 0
        for block in blocks:
            if block not in self._free and block not in self._pins:
                break
            count += 1
        return count

    # -- events

    def add(self, key: int, arrival: Arrival, now_s: float) -> None:
        """A request arrives; `advance(now_s)` must have been called."""
        self.waiting.append(Sequence(key, arrival, now_s, arrival.output_tokens))
        if self._step_ends_s is None:
            self._begin(now_s)
        elif self._steps > 1:
            # It joins after the step under way, not after the whole run of equal ones.
            self._shorten(now_s)

    @property
    def next_s(self) -> float | None:
        """When the steps under way end; None: idle."""
        return self._step_ends_s

    def advance(self, now_s: float) -> None:
        """Run all steps that end by now."""
        while self._step_ends_s is not None and self._step_ends_s <= now_s:
            self._end(self._step_ends_s)

    # -- steps

    def _begin(self, at_s: float) -> None:
        self.now_s = at_s
        speed = self.speed
        budget = speed.budget_tokens - len(self.decoding)
        self._chunks = []
        compute_s = 0.0
        for sequence in self.prefilling:
            if budget <= 0:
                break
            budget, compute_s = self._chunk(sequence, budget, compute_s)
        while budget > 0 and self.waiting and self._admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.prefilling.append(sequence)
            budget, compute_s = self._chunk(sequence, budget, compute_s)
        running = len(self.decoding)
        if not self._chunks and not running:
            self._step_ends_s = None
            return
        self._steps = 1
        context = 0
        for each in self.decoding:
            context += each.context_tokens
        if not self._chunks:
            least = min(each.left_tokens for each in self.decoding)
            room = (speed.kv_tokens - self._used_tokens()) // running
            self._steps = max(1, min(_STRIDE, least, room))
            context += running * (self._steps // 2)
        self._step_s = (
            speed.step_s + compute_s + speed.sequence_s * running + speed.read_s * context
        )
        self._began_s = at_s
        self._step_ends_s = at_s + self._steps * self._step_s

    def _chunk(self, sequence: Sequence, budget: int, compute_s: float) -> tuple[int, float]:
        part = min(budget, sequence.prefill_left)
        done = sequence.context_tokens
        speed = self.speed
        self._chunks.append((sequence, part))
        cost_s = part * (speed.prefill_s + speed.attend_s * (done + part / 2))
        return budget - part, compute_s + cost_s

    def _shorten(self, now_s: float) -> None:
        done = int((now_s - self._began_s) / self._step_s) + 1
        if done < self._steps:
            self._steps = done
            self._step_ends_s = self._began_s + done * self._step_s

    def _end(self, at_s: float) -> None:
        steps = self._steps
        self.busy_s += at_s - self._began_s
        done = []
        for sequence in self.decoding:
            sequence.context_tokens += steps
            sequence.left_tokens -= steps
            if sequence.left_tokens <= 0:
                done.append(sequence)
        self.output_tokens += steps * len(self.decoding)
        self._private_tokens += steps * len(self.decoding)
        for sequence, part in self._chunks:
            sequence.context_tokens += part
            sequence.prefill_left -= part
            if sequence.prefill_left == 0:
                self.prefilling.remove(sequence)
                self._computed(sequence)
                self.output_tokens += 1
                sequence.left_tokens -= 1
                sequence.context_tokens += 1
                self._private_tokens += 1
                if sequence.first_token_s is None:
                    sequence.first_token_s = at_s
                self.decoding.append(sequence)
                if sequence.left_tokens <= 0:
                    done.append(sequence)
        if done:
            gone = set(map(id, done))
            self.decoding = [each for each in self.decoding if id(each) not in gone]
            for sequence in done:
                self._release(sequence)
                self.finished.append((sequence, at_s))
        while (
            self._used_tokens() > self.speed.kv_tokens
            and len(self.decoding) + len(self.prefilling) > 1
        ):
            # The last to be admitted is the first to be put back.
            self._preempt((self.prefilling or self.decoding).pop())
        self._begin(at_s)

    # -- memory

    def _used_tokens(self) -> int:
        return self._private_tokens + len(self._pins) * BLOCK_TOKENS

    def _admit(self, sequence: Sequence) -> bool:
        """Take blocks and memory for a prompt, if they are there."""
        if len(self.decoding) + len(self.prefilling) >= self.speed.max_sequences:
            return False
        arrival = sequence.arrival
        prompt = arrival.prompt_tokens + (arrival.output_tokens - sequence.left_tokens)
        # A trace may end a prompt within a block; only whole ones are ever shared.
        hits = self.holds(arrival.blocks[: arrival.prompt_tokens // BLOCK_TOKENS])
        # The last token is always computed: it gives the first of the answer.
        cached = min(hits * BLOCK_TOKENS, prompt - 1)
        # Blocks that nobody else uses now are taken out of what could be evicted.
        taken = BLOCK_TOKENS * sum(block not in self._pins for block in arrival.blocks[:hits])
        private = prompt - hits * BLOCK_TOKENS
        if self._used_tokens() + taken + private + 1 > self.speed.kv_tokens and (
            self.decoding or self.prefilling
        ):
            return False
        for block in arrival.blocks[:hits]:
            self._free.pop(block, None)
            self._pins[block] = self._pins.get(block, 0) + 1
        sequence.pinned = hits
        sequence.cached_tokens = cached
        sequence.context_tokens = cached
        sequence.prefill_left = prompt - cached
        self._private_tokens += private
        self.prompt_tokens += prompt
        self.hit_tokens += cached
        self._evict()
        return True

    def _computed(self, sequence: Sequence) -> None:
        """A prompt is whole: its full blocks can be shared from now on."""
        blocks = sequence.arrival.blocks
        full = min(len(blocks), sequence.arrival.prompt_tokens // BLOCK_TOKENS)
        for block in blocks[sequence.pinned : full]:
            if block in self._pins:
                self._pins[block] += 1
            else:
                self._free.pop(block, None)
                self._pins[block] = 1
                self.stored.append(block)
            self._private_tokens -= BLOCK_TOKENS
        sequence.pinned = max(sequence.pinned, full)

    def _release(self, sequence: Sequence) -> None:
        blocks = sequence.arrival.blocks[: sequence.pinned]
        # Last block first: the front of a prefix is what others share, and goes last.
        for block in reversed(blocks):
            left = self._pins[block] - 1
            if left:
                self._pins[block] = left
            else:
                del self._pins[block]
                self._free[block] = None
        shared = sequence.pinned * BLOCK_TOKENS
        self._private_tokens -= max(0, sequence.context_tokens + sequence.prefill_left - shared)
        self._evict()

    def _evict(self) -> None:
        room = (self.speed.kv_tokens - self._used_tokens()) // BLOCK_TOKENS
        while len(self._free) > max(0, room):
            block, _ = self._free.popitem(last=False)
            self.evicted.append(block)

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.pinned = sequence.prefill_left = sequence.context_tokens = 0
        self.waiting.appendleft(sequence)
