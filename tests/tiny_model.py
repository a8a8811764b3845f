"""A tiny Llama with random weights, made on the spot: the real engine runs it like any other.

Its answers are noise, so tests assert on shapes, usage, timing and equality, never on sense.
"""

from __future__ import annotations

import json
from pathlib import Path

VOCABULARY = 512
CONTEXT_TOKENS = 2048

#: Plain, with tools listed as JSON and tool results as their own role.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% elif m['content'] %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}"
    "{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}\n"
    "{% endfor %}{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_CORPUS = [
    "the ticket says that the printer on the second floor is out of order again",
    "please answer with a short json object: category, urgency and product",
    '{"category": "billing", "urgency": "high", "product": "cloud"}',
    "hello, how are you? one two three four five six seven eight nine ten",
]


def make_tiny_model(folder: Path, *, seed: int = 7) -> Path:
    """Write config, weights and tokenizer into `folder` (made if need be); the same every time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 16,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    # Every id of the embedding must decode: fill up with ordinary added tokens.
    missing = VOCABULARY - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<w{index}>" for index in range(missing)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|end|>",
                "pad_token": "<|pad|>",
                "model_max_length": CONTEXT_TOKENS,
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|end|>"),
        pad_token_id=tokenizer.token_to_id("<|pad|>"),
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder
