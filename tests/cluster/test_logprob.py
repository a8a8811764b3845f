"""The mean log-probability of an answer: from the real engine, and only where it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.errors import NoEndpoint
from tests.cluster.serving import HAIKU, PARAMS, serving
from tests.conftest import RunningReplica

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(420)]

#: The tier holds a hosted model too, which cannot tell it.
ASKED = Routing(tier="small", mean_logprob=True)
MESSAGES = [{"role": "user", "content": "Which ticket is out of order?"}]


def recomputed(folder: Path, max_tokens: int) -> float:
    """The same by transformers: greedy tokens and their mean log-probability."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = out.sequences[0][inputs["input_ids"].shape[1] :]
    rows = torch.stack(out.logits)[:, 0].log_softmax(-1)
    return float(rows.gather(1, tokens[:, None]).mean())


async def test_it_equals_a_recomputation(
    monkeypatch: pytest.MonkeyPatch, replica: RunningReplica, tiny_model: Path
) -> None:
    params = {**PARAMS, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    async with serving(monkeypatch, local=replica.spec) as served:
        asked = await served.inference.create(params, ASKED)
        plain = await served.inference.create(params, Routing(endpoint=replica.spec.name))
    told = asked.agentcloud.mean_logprob
    assert told is not None
    assert told < 0
    assert told == pytest.approx(recomputed(tiny_model, 12), abs=1e-3)
    # It changes nothing of the answer, and costs nothing where nobody asks.
    assert asked.content == plain.content
    assert asked.usage.output_tokens == plain.usage.output_tokens
    assert plain.agentcloud.mean_logprob is None


async def test_what_a_grammar_forces_is_certain(
    monkeypatch: pytest.MonkeyPatch, replica: RunningReplica
) -> None:
    schema = {
        "type": "object",
        "properties": {"fine": {"const": "yes"}},
        "required": ["fine"],
        "additionalProperties": False,
    }
    params = {
        **PARAMS,
        "temperature": 0,
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }
    async with serving(monkeypatch, local=replica.spec) as served:
        forced = (await served.inference.create(params, ASKED)).agentcloud.mean_logprob
        free = await served.inference.create({**PARAMS, "temperature": 0}, ASKED)
    assert forced is not None
    assert free.agentcloud.mean_logprob is not None
    assert free.agentcloud.mean_logprob < forced <= 0


async def test_an_endpoint_that_cannot_tell_it_is_ruled_out_by_name(
    monkeypatch: pytest.MonkeyPatch, replica: RunningReplica
) -> None:
    async with serving(monkeypatch, local=replica.spec) as served:
        with pytest.raises(NoEndpoint, match=f"main/{HAIKU}: cannot do mean_logprob"):
            await served.inference.create(PARAMS, Routing(tier=HAIKU, mean_logprob=True))
        assert served.sends == 0
