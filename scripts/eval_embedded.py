"""How often the embedded models are right, in the real engine, on wording they never saw.

    python scripts/eval_embedded.py [--json] [--n 300] [--models DIR]

Each answer is held to the JSON schema of `Triage`, as the demo's are.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Before vllm is imported: it reads its environment once.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from agentcloud.cluster.embedded import EMBEDDED_MODELS, embedded_model_path
from agentcloud.tasks.demo.tickets import Ticket, generate
from agentcloud.tasks.demo.triage import SYSTEM_PROMPT, Triage
from agentcloud.tasks.demo.wording import WORDING_NAMES

FIELDS = tuple(Triage.model_fields)
MAX_ANSWER_TOKENS = 64


def answers(folder: Path, tickets: list[Ticket]) -> list[str]:
    """What the model in ``folder`` says to each ticket, greedily."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    engine = LLM(
        model=str(folder),
        enforce_eager=True,
        max_model_len=1024,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=MAX_ANSWER_TOKENS,
        structured_outputs=StructuredOutputsParams(json=Triage.model_json_schema()),
    )
    chats = [
        [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": ticket.text},
        ]
        for ticket in tickets
    ]
    outputs = engine.chat(chats, sampling, use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    engine.llm_engine.engine_core.shutdown()
    return texts


def score(tickets: list[Ticket], texts: list[str]) -> dict[str, float]:
    """The share of tickets right by field, and right as a whole."""
    triages = [Triage.model_validate_json(text) for text in texts]
    pairs = list(zip(triages, (ticket.expected for ticket in tickets), strict=True))
    shares = {
        name: sum(getattr(ours, name) == getattr(true, name) for ours, true in pairs) / len(pairs)
        for name in FIELDS
    }
    return {**shares, "whole": sum(ours == true for ours, true in pairs) / len(pairs)}


def main() -> None:
    """Print a row per model."""
    parser = argparse.ArgumentParser(description="Accuracy of the embedded models.")
    parser.add_argument("--n", type=int, default=300, help="how many tickets")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--wording", choices=WORDING_NAMES, default="held-out")
    parser.add_argument("--models", type=Path, help="a folder of models, not the packaged ones")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    tickets = list(generate(arguments.n, seed=arguments.seed, wording=arguments.wording))
    report: dict[str, dict[str, Any]] = {}
    for name in EMBEDDED_MODELS:
        folder = arguments.models / name if arguments.models else embedded_model_path(name)
        started_s = time.monotonic()
        texts = answers(folder, tickets)
        report[name] = {
            **score(tickets, texts),
            "tickets": len(tickets),
            "seconds_with_start": round(time.monotonic() - started_s, 1),
        }
    if arguments.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    columns = (*FIELDS, "whole")
    print("model".ljust(16), *(column.rjust(9) for column in columns))
    for name, row in report.items():
        print(name.ljust(16), *(f"{row[column]:9.1%}" for column in columns))


if __name__ == "__main__":
    main()
