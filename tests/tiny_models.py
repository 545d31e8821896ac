"""Tiny random HF models on disk: real architectures at toy sizes, with a tokenizer and a chat template, so that every
layer from the runner to the HTTP server can be tested without a download.

Sizes are irregular on purpose (48 hidden, 88 intermediate, 3 layers, 4 heads over 2 kv heads): a transposed or
mixed-up dimension cannot pass. Norms and biases are random too, so forgetting one changes the logits.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from glass_core.checkpoint.json_file import write_json_object

FAMILIES = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID = 1, 2, 0
VOCAB_SIZE = 300
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": PAD_TOKEN_ID,
}
_FAMILY_SIZES: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 20,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},  # 4 heads of 16 are not the 48 of hidden_size
}
_TRAINING_TEXT = (
    "The quick brown fox jumps over the lazy dog. What is the capital of France? The capital of France is Paris.",
    "She sells sea shells on the sea shore; the shells that she sells are sea shells, I am sure of that.",
)


def tiny_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """The toy HF config of a family; overrides are HF config keys."""
    return AutoConfig.for_model(family, **{**_SIZES, **_FAMILY_SIZES[family], **overrides})


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """The toy model in memory, float32, in eval mode."""
    factory: Any = AutoModelForCausalLM  # its methods are not annotated
    model = factory.from_config(tiny_config(family, **overrides), dtype=torch.float32).eval()
    _randomize(model.named_parameters(), torch.Generator().manual_seed(seed))
    return cast(PreTrainedModel, model)


def _randomize(parameters: Iterable[tuple[str, torch.Tensor]], generator: torch.Generator) -> None:
    """Scales that keep activations near 1 and spread logits by about 2: greedy choices are clear, sampling is not."""
    for name, parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            noise = 1.0 + 0.2 * noise
        elif name.endswith("bias") or "embed_tokens" in name or "lm_head" in name:
            noise = 0.3 * noise
        else:
            noise = 1.5 * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(noise)


def save_tiny_model(directory: Path, family: str, seed: int = 0, *, dtype: str = "float32", **overrides: Any) -> Path:
    """Write a complete HF folder (weights, tokenizer, chat template, generation config) and return it."""
    model = tiny_model(family, seed, **overrides).to(getattr(torch, dtype))
    model.save_pretrained(directory)
    save_tiny_tokenizer(directory)
    write_json_object(
        directory / "generation_config.json",
        {"bos_token_id": BOS_TOKEN_ID, "eos_token_id": EOS_TOKEN_ID, "pad_token_id": PAD_TOKEN_ID},
    )
    return directory


def save_tiny_tokenizer(directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja of a 300-token byte-level BPE."""
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    bos, eos, pad = (SPECIAL_TOKENS[i] for i in (BOS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID))
    write_json_object(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "clean_up_tokenization_spaces": False,
        },
    )
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE over all 256 bytes, three special tokens and some forty merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT, trainer)
    return tokenizer
