"""The embedded models' files, checked without the engine (scripts/eval_embedded.py uses it)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from agentcloud.cluster.embedded import EMBEDDED_MODELS, embedded_model_path
from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.demo.corpus import answer_of
from agentcloud.tasks.demo.tickets import generate
from agentcloud.tasks.demo.triage import SYSTEM_PROMPT

TOOL = {
    "type": "function",
    "function": {
        "name": "lookup_order",
        "description": "Look up an order.",
        "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}},
    },
}
TOOL_LOOP: list[dict[str, Any]] = [
    {"role": "user", "content": "Where is my order 48213?"},
    {
        "role": "assistant",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "lookup_order", "arguments": {"order_id": "48213"}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": '{"status": "lost"}'},
]


@pytest.fixture(params=EMBEDDED_MODELS)
def folder(request: pytest.FixtureRequest) -> Path:
    return embedded_model_path(f"embedded:{request.param}")


def render(folder: Path, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **kwargs
    )
    assert isinstance(text, str)
    return text


def test_a_model_that_does_not_ship_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"no embedded model 'embedded:huge'.*triage-small"):
        embedded_model_path("embedded:huge")


def test_the_models_together_stay_small() -> None:
    files = [file for name in EMBEDDED_MODELS for file in embedded_model_path(name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 12_000_000
    assert all(file.stat().st_mode & 0o004 for file in files), "a wheel keeps these modes"


def test_the_large_model_is_the_larger() -> None:
    small, large = (
        (embedded_model_path(name) / "model.safetensors").stat().st_size for name in EMBEDDED_MODELS
    )
    assert large > 2 * small


def test_two_way_tensor_parallelism_divides_the_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_attention_heads"] % 2 == 0
    assert config["num_key_value_heads"] % 2 == 0
    assert config["intermediate_size"] % 2 == 0
    assert config["head_dim"] in (32, 64, 96, 128)  # what vLLM's CPU attention has
    assert config["max_position_embeddings"] == 2048


def test_answers_end_at_the_token_that_ends_a_turn(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert tokenizer.eos_token == "<|im_end|>"
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert len(tokenizer) <= json.loads((folder / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize("text", ["naïve café – ok?", "日本語 🙂", "\t {x}\n", "a" * 300])
def test_any_text_survives_the_tokenizer(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_chat_template_renders_system_user_and_assistant(folder: Path) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "S"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "U1"}, {"type": "text", "text": "U2"}],
        },
        {"role": "assistant", "content": "A"},
        {"role": "system", "content": "S2"},
        {"role": "user", "content": "V"},
    ]
    assert render(folder, messages) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1U2<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>system\nS2<|im_end|>\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("system", [True, False])
def test_the_chat_template_renders_tools_once_and_their_turns(folder: Path, system: bool) -> None:
    messages: list[dict[str, Any]] = [
        *([{"role": "system", "content": "Be brief."}] if system else []),
        *TOOL_LOOP,
    ]
    text = render(folder, messages, tools=[TOOL])
    assert text.count("<tools>") == text.count("</tools>") == 1
    assert text.count("<|im_start|>system") == 1
    assert (
        '<tool_call>\n{"name": "lookup_order", "arguments": {"order_id": "48213"}}\n</tool_call>'
    ) in text
    assert '<|im_start|>user\n<tool_response>\n{"status": "lost"}\n</tool_response>' in text


def test_the_chat_template_takes_turns_without_the_tools_they_used(folder: Path) -> None:
    text = render(folder, TOOL_LOOP)
    assert "<tools>" not in text
    assert "<tool_response>" in text


def test_both_models_answer_tickets_far_better_than_chance() -> None:
    tickets = list(generate(48, seed=11, wording="held-out"))
    for name in EMBEDDED_MODELS:
        path = embedded_model_path(name)
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        chats = [
            [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": ticket.text}]
            for ticket in tickets
        ]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
        with torch.inference_mode():
            outputs = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        texts = tokenizer.batch_decode(
            outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        # No grammar holds them here; an answer that is not JSON is a wrong one.
        true = [answer_of(ticket.expected) for ticket in tickets]
        right = [ours == expected for ours, expected in zip(texts, true, strict=True)]
        assert sum(text.startswith('{"category":"') for text in texts) >= 0.95 * len(texts), name
        # Chance is 1 in 6 * 4 * 5 = 120.
        assert sum(right) >= 0.65 * len(right), name
