"""Train the two embedded models; the same seed gives the same data and start.

    python scripts/train_embedded.py              # both, into cluster/data/models
    python scripts/train_embedded.py --only triage-small --steps 200 --out /tmp/models

Everything is made here: text (agentcloud.tasks.demo.corpus), tokenizer, weights.

The weights that ship are of the fourth round (`--start-from DIR --round 4 --steps 2000`); the
training wording was widened between rounds. One run from nothing gives weaker ones: the small model
72% of unknown tickets wholly right after its 6,000 steps (14 minutes on one core), not 84%.
"""

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from agentcloud.tasks.demo.corpus import Conversation, conversations

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "cluster" / "data" / "models"
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

VOCABULARY_TOKENS = 1024
CONTEXT_TOKENS = 2048
TRAINED_CONTEXT_TOKENS = 1024
BATCH_TOKENS = 2048
# Tickets and tool results carry a little of the loss too: it teaches which
# words keep company, and that is how an unknown phrase finds its label.
PROMPT_LOSS_WEIGHT = 0.03
# Of an answer's fifteen tokens only the three labels are hard; without this the
# easy ones drown them.
LABEL_LOSS_WEIGHT = 5.0
# Up to so much of a ticket's tokens are exchanged at random: a model that cannot rely on one word
# weighs them all, and unknown wording is full of words it does not know.
MOST_NOISE = 0.05

END = "<|im_end|>"
PADDING = "<|endoftext|>"
SPECIAL = (PADDING, "<|im_start|>", END)
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model's shape and training; heads come in pairs so that TP=2 divides them."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    steps: int
    peak_learning_rate: float
    seed: int


RECIPES = (
    Recipe("triage-small", 128, 3, 4, 2, 256, steps=6000, peak_learning_rate=3e-3, seed=1),
    Recipe("triage-large", 192, 4, 6, 2, 512, steps=6000, peak_learning_rate=2e-3, seed=2),
)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one conversation, and how much each counts as a target."""

    ids: list[int]
    weights: list[float]


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about a thousand tokens, learnt from the corpus."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: numbers can then be copied, whatever they are.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    texts = (
        text
        for conversation in itertools.islice(conversations(rng), 6000)
        for message in conversation.messages
        for text in (f"{message['role']}\n", message["content"], *_dumped(conversation, message))
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PADDING,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE.read_text(),
    )


def _dumped(conversation: Conversation, message: dict[str, Any]) -> Iterator[str]:
    """The JSON that the chat template writes beside a message's own text."""
    if message["role"] == "tool":
        yield "user\n"
        yield from (json.dumps(tool["function"]) for tool in conversation.tools)
    yield from (json.dumps(call["function"]) for call in message.get("tool_calls", ()))


class Encoder:
    """Turns conversations into examples, through the chat template that serves them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._end = tokenizer.convert_tokens_to_ids(END)
        self._colon = tokenizer.convert_tokens_to_ids('":"')
        self._answer_start: list[int] = tokenizer.encode("<|im_start|>assistant\n")

    def encode(self, conversation: Conversation) -> Example:
        """Render and tokenize; answers weigh 1, their labels more, all else little."""
        ids: list[int] = self._tokenizer.apply_chat_template(
            conversation.messages, tools=conversation.tools or None, return_dict=False
        )
        learnt = [m.get("learn", True) for m in conversation.messages if m["role"] == "assistant"]
        weights = [PROMPT_LOSS_WEIGHT] * len(ids)
        position, width = 0, len(self._answer_start)
        for is_learnt in learnt:
            while ids[position : position + width] != self._answer_start:
                position += 1
            position += width
            stop = ids.index(self._end, position) + 1
            for at in range(position, stop):
                is_label = ids[at - 1] == self._colon
                weights[at] = (LABEL_LOSS_WEIGHT if is_label else 1.0) if is_learnt else 0.0
            position = stop
        if LABEL_LOSS_WEIGHT in weights and not conversation.tools:
            self._disturb(ids, weights)
        return Example(ids[:TRAINED_CONTEXT_TOKENS], weights[:TRAINED_CONTEXT_TOKENS])

    def _disturb(self, ids: list[int], weights: list[float]) -> None:
        """Exchange some tokens of the prompt, which are then no targets either."""
        share = self._rng.random() * MOST_NOISE
        for at, weight in enumerate(weights):
            if (
                weight == PROMPT_LOSS_WEIGHT
                and ids[at] >= len(SPECIAL)
                and self._rng.random() < share
            ):
                ids[at] = self._rng.randrange(len(SPECIAL), VOCABULARY_TOKENS - len(TAGS))
                weights[at] = 0.0


def batches(
    encoder: Encoder, rng: random.Random, pad: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids, weights) of about BATCH_TOKENS, of conversations alike in length."""
    stream = conversations(rng)
    while True:
        pool = sorted(
            (encoder.encode(conversation) for conversation in itertools.islice(stream, 512)),
            key=lambda example: len(example.ids),
        )
        groups: list[list[Example]] = [[]]
        for example in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(example.ids) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(example.ids) for example in group)
            ids = torch.full((len(group), width), pad)
            weights = torch.zeros((len(group), width))
            for row, example in enumerate(group):
                ids[row, : len(example.ids)] = torch.tensor(example.ids)
                weights[row, : len(example.ids)] = torch.tensor(example.weights)
            yield ids, weights


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, the same ones for the same seed."""
    torch.manual_seed(recipe.seed)
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (END, PADDING))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_TOKENS,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )


def train(
    model: LlamaForCausalLM,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    steps: int,
) -> None:
    """Train a model in place; progress goes to standard error."""
    pad = tokenizer.convert_tokens_to_ids(PADDING)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    kept = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
        lr=recipe.peak_learning_rate,
        betas=(0.9, 0.98),
    )
    stream = batches(Encoder(tokenizer, rng), rng, pad)
    started_s = time.monotonic()
    for step, (ids, weights) in enumerate(itertools.islice(stream, steps)):
        warm = min(1.0, (step + 1) / 50)
        cooled = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_learning_rate * warm * cooled
        # Padding is on the right, so the causal mask alone hides it.
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        target_weights = weights[:, 1:].flatten()
        loss = (losses * target_weights).sum() / target_weights.sum()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            labels = target_weights == LABEL_LOSS_WEIGHT
            shown = losses[labels].mean().item()
            spent_s = time.monotonic() - started_s
            print(
                f"{recipe.name} step {step} label loss {shown:.3f} "
                f"({spent_s / (step + 1):.2f} s/step)",
                file=sys.stderr,
                flush=True,
            )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write what vLLM loads: weights, configs, tokenizer, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PADDING),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # vLLM takes its default temperature from here and does not know `do_sample`; transformers
    # refuses to write this one beside it.
    generation = folder / "generation_config.json"
    settings = json.loads(generation.read_text()) | {"temperature": 0.0}
    generation.write_text(json.dumps(settings, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone; a wheel keeps that


def main() -> None:
    """Train what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=[recipe.name for recipe in RECIPES])
    parser.add_argument("--steps", type=int, help="instead of the recipe's own")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start-from", type=Path, metavar="DIR", help="train these further")
    parser.add_argument("--round", type=int, default=1, help="2, 3, … when training further")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    for recipe in RECIPES:
        if arguments.only not in (None, recipe.name):
            continue
        started_s = time.monotonic()
        if arguments.start_from:
            start = arguments.start_from / recipe.name
            tokenizer = AutoTokenizer.from_pretrained(start)
            model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        else:
            tokenizer = train_tokenizer(seed=0)
            model = new_model(recipe, tokenizer)
        # Another round sees other tickets.
        rng = random.Random(f"{recipe.seed}/{arguments.round}")  # noqa: S311 - not for secrets
        train(model.train(), recipe, tokenizer, rng, arguments.steps or recipe.steps)
        folder = arguments.out / recipe.name
        save(model.to(torch.bfloat16).eval(), tokenizer, folder)
        parameters = sum(p.numel() for p in model.parameters())
        size_bytes = sum(file.stat().st_size for file in folder.iterdir())
        print(
            f"{recipe.name}: {parameters / 1e6:.2f} M parameters, {size_bytes / 1e6:.2f} MB, "
            f"{time.monotonic() - started_s:.0f} s",
        )


if __name__ == "__main__":
    main()
