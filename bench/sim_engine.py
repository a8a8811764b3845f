"""The real vLLM engine, stepped by hand: what each step computed and how long it took.

An embedded model on the CPU with the settings that a replica of it gets, in this process and on
one thread (two cores), so that CPU time is the wall's of an idle machine, and neighbours on a
shared one count less.
`simulate.py`'s replicas are a model of this; `sim_calibrate.py` compares the two.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.engine_settings import engine_settings
from bench.sim_traces import Arrival

MODEL: Final = "triage-large"
CONTEXT_TOKENS: Final = 2048
SEQUENCES: Final = 128
#: Small, so that long prompts are computed in several steps.
BUDGET_TOKENS: Final = 512
_WORDS: Final = (10, 1000)


@dataclass(slots=True)
class Step:
    """One step of the engine.

    Attributes:
        prompt_tokens: computed of prompts.
        pairs: of a prompt's token and one before it.
        running: sequences that got one more token.
        read_tokens: their contexts together.
    """

    prompt_tokens: int = 0
    pairs: float = 0.0
    running: int = 0
    read_tokens: int = 0
    took_s: float = 0.0

    def features(self) -> tuple[float, float, float, float, float]:
        """What `Speed`'s five coefficients are multiplied with."""
        return 1.0, float(self.prompt_tokens), self.pairs, float(self.running), self.read_tokens


class SteppedEngine:
    """An engine whose steps are taken, told and timed one by one."""

    def __init__(self) -> None:
        section = {
            "path": f"embedded:{MODEL}",
            "tensor_parallel": 1,
            "kv_cache_gib": 0.25,
            "context_tokens": CONTEXT_TOKENS,
            "max_concurrency": SEQUENCES,
            "engine_args": {"max_num_batched_tokens": BUDGET_TOKENS},
        }
        model = parse_fleet({"models": {MODEL: section}}).models[MODEL]
        settings = engine_settings(
            MODEL, model, tensor_parallel=1, cores=range(os.cpu_count() or 1)
        )
        os.environ.update({**settings.env, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
        from vllm.engine.arg_utils import EngineArgs
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine.llm_engine import LLMEngine

        known = EngineArgs.__dataclass_fields__
        args = {name: value for name, value in settings.args.items() if name in known}
        # Otherwise a step's answer comes with the next one.
        args |= {"async_scheduling": False, "enable_prefix_caching": False}
        self._engine = LLMEngine.from_engine_args(EngineArgs(**args))
        self._params = SamplingParams
        core: Any = self._engine.engine_core
        self._scheduler = core.engine_core.scheduler
        self._schedule = self._scheduler.schedule
        self._scheduler.schedule = self._watch
        self._step = Step()
        self._rng = random.Random(3)
        self._count = 0
        config = self._engine.vllm_config
        self.kv_tokens = config.cache_config.num_gpu_blocks * config.cache_config.block_size

    def add(self, prompt_tokens: int, output_tokens: int) -> str:
        """Let a request with a random prompt wait."""
        self._count += 1
        name = str(self._count)
        prompt = {"prompt_token_ids": [self._rng.randrange(*_WORDS) for _ in range(prompt_tokens)]}
        params = self._params(max_tokens=output_tokens, ignore_eos=True, temperature=0.0)
        self._engine.add_request(name, prompt, params)
        return name

    def step(self) -> tuple[Step, dict[str, bool]]:
        """Take one step: what it did, and the requests that got a token (True: their last)."""
        self._step = Step()
        began_s = time.process_time()
        outputs = self._engine.step()
        self._step.took_s = time.process_time() - began_s
        return self._step, {each.request_id: each.finished for each in outputs}

    @property
    def busy(self) -> bool:
        """Whether requests are unfinished."""
        return bool(self._engine.has_unfinished_requests())

    def drain(self) -> list[Step]:
        """Steps until nothing is left."""
        steps = []
        while self.busy:
            steps.append(self.step()[0])
        return steps

    def play(self, arrivals: Sequence[Arrival]) -> list[tuple[float, float]]:
        """Requests at their times -> time to first token and total of each, seconds.

        The clock is the process's CPU time, and jumps over the time in which nothing is to do.
        """
        names: dict[str, int] = {}
        first_s, end_s = [0.0] * len(arrivals), [0.0] * len(arrivals)
        began_s, due = time.process_time(), 0
        while due < len(arrivals) or self.busy:
            now_s = time.process_time() - began_s
            while due < len(arrivals) and arrivals[due].at_s <= now_s:
                each = arrivals[due]
                names[self.add(each.prompt_tokens, each.output_tokens)] = due
                due += 1
            if not self.busy:
                began_s -= max(0.0, arrivals[due].at_s - now_s)
                continue
            _, told = self.step()
            now_s = time.process_time() - began_s
            for name, finished in told.items():
                index = names[name]
                first_s[index] = first_s[index] or now_s
                if finished:
                    end_s[index] = now_s
        return [
            (first_s[index] - each.at_s, end_s[index] - each.at_s)
            for index, each in enumerate(arrivals)
        ]

    def _watch(self, *args: Any, **kwargs: Any) -> Any:
        told = self._schedule(*args, **kwargs)
        for name, count in told.num_scheduled_tokens.items():
            request = self._scheduler.requests[name]
            # The scheduler has counted these tokens as computed already.
            before = request.num_computed_tokens - count
            if before < request.num_prompt_tokens:
                self._step.prompt_tokens += count
                self._step.pairs += count * (before + count / 2)
            else:
                self._step.running += 1
                self._step.read_tokens += before + 1
        return told
