"""ConfigReader: strict, typed access to an HF `config.json`.

A family asks for the keys it implements; `refuse_unread` then names every remaining key that could change the
computation. Only bookkeeping keys listed here, keys with a leading underscore and null values are let through: a silent
unknown feature would give plausible but wrong text.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from glass_core.errors import UnsupportedModelError

Choice = TypeVar("Choice")

_MISSING = object()

# Keys that describe files, training, labels or generation defaults: none of them enters the forward pass.
HARMLESS_KEYS = frozenset(
    """
    model_type architectures name_or_path torch_dtype dtype transformers_version transformers.js_config
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id tokenizer_class prefix
    initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop use_cache
    cache_implementation attn_implementation torchscript return_dict output_attentions output_hidden_states
    output_scores return_dict_in_generate use_return_dict gradient_checkpointing problem_type finetuning_task
    task_specific_params id2label label2id num_labels tie_encoder_decoder is_llama_config
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty max_new_tokens
    unsloth_fixed unsloth_version unsloth_training_tokenizer license base_model datasets
    """.split()  # noqa: SIM905 - seventy names read better as a block
)

# Keys that are harmless only at the value that switches the feature off.
NEUTRAL_VALUES: Mapping[str, Any] = {
    "pretraining_tp": 1,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "use_bfloat16": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
    "logit_scale": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "tf_legacy_loss": False,
}

_EXPLANATIONS: Mapping[str, str] = {
    "quantization_config": "quantized Hugging Face checkpoints (use a GGUF file or unquantized safetensors)",
    "auto_map": "models with custom code",
    "compression_config": "compressed checkpoints (use a GGUF file or unquantized safetensors)",
    "num_experts": "mixture of experts",
    "num_local_experts": "mixture of experts",
    "num_experts_per_tok": "mixture of experts",
    "n_routed_experts": "mixture of experts",
    "moe_intermediate_size": "mixture of experts",
    "text_config": "multimodal models",
    "vision_config": "multimodal models",
    "no_rope_layers": "layers without rotary embedding",
    "dual_chunk_attention_config": "dual chunk attention",
    "final_logit_softcapping": "logit soft-capping",
    "attn_logit_softcapping": "logit soft-capping",
}


class ConfigReader:
    """Typed reads from one config; remembers which keys were read.

    Every method raises UnsupportedModelError naming the key, the value found and what is expected.
    """

    def __init__(self, config: Mapping[str, Any], model_type: str) -> None:
        self.model_type = model_type
        self._config = config
        self._read: set[str] = set()

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it is; null counts as missing."""
        self._read.add(key)
        value = self._config.get(key)
        return default if value is None else value

    def has(self, key: str) -> bool:
        """Whether the key is present, null included (null can mean something else than missing)."""
        return key in self._config

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.raw(key, default)
        if value is None:
            raise self.refused(key, None, "a positive integer (the key is missing)")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refused(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive finite number."""
        return positive_number(self.raw(key, default), f"{self.model_type} config: {key}")

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, value, "true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, Choice], default: str) -> Choice:
        """One of the named choices."""
        value = self.raw(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refused(key, value, f"one of {', '.join(choices)}")
        return choices[value]

    def refused(self, key: str, value: object, expected: str) -> UnsupportedModelError:
        """The error to raise for a key; the caller raises it so that control flow stays visible."""
        return UnsupportedModelError(f"{self.model_type} config: {key} is {value!r}, expected {expected}")

    def refuse_unread(self) -> None:
        """Refuse every key that nobody read and that may change the computation."""
        self._check_architectures()
        for key, value in self._config.items():
            if key in self._read or key in HARMLESS_KEYS or key.startswith("_") or value is None:
                continue
            if NEUTRAL_VALUES.get(key, _MISSING) == value:
                continue
            raise UnsupportedModelError(self._unread_message(key, value))

    def _unread_message(self, key: str, value: object) -> str:
        if key in _EXPLANATIONS:
            return f"{self.model_type} config: {key} is set; {_EXPLANATIONS[key]} are not supported"
        if key in NEUTRAL_VALUES:
            return f"{self.model_type} config: {key} is {value!r}, only {NEUTRAL_VALUES[key]!r} is supported"
        return f"{self.model_type} config: unknown key {key!r} ({_shorten(value)}); it may change the computation"

    def _check_architectures(self) -> None:
        for name in self._config.get("architectures") or ():
            if not str(name).endswith("ForCausalLM"):
                raise self.refused("architectures", name, "a causal language model (…ForCausalLM)")


def positive_number(value: object, where: str) -> float:
    """A positive finite number, or UnsupportedModelError starting with `where`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UnsupportedModelError(f"{where} is {value!r}, expected a positive number")
    return float(value)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
