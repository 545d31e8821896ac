"""GGUF metadata → HF config. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm.

The result goes through the same strict family reader as any HF config. Every `<architecture>.*` key must be understood
here or is refused by name.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from glass_core.checkpoint.gguf_file import GgufFile
from glass_core.errors import CheckpointError, UnsupportedModelError

# GGUF's name of an architecture → HF's model_type; mistral ships as llama, the same network without a window.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
_GEMMA3_27B_LAYERS = 62
ROPE_FACTORS = "rope_freqs.weight"
# What llama.cpp's converter bakes into rope_freqs.weight for Llama 3.x; only `factor` differs between the models.
_LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_OFF_VALUES = {"expert_count": 0, "expert_used_count": 0, "attention.sliding_window": 0, "attention.causal": True}


class GgufConfig:
    """Reads one file's `<architecture>.*` keys, remembering which were read."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = _architecture(file)
        self._read: set[str] = set()

    def raw(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return self.file.metadata.get(f"{self.architecture}.{key}", default)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw(key, default)
        if type(value) is not int:
            raise CheckpointError(f"{self.file.path}: {self.architecture}.{key} is {value!r}, expected one integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A float32, as the shortest decimal that means it (1e-05, not 9.99999974e-06)."""
        value = self.raw(key, default)
        if not isinstance(value, int | float):
            raise CheckpointError(f"{self.file.path}: {self.architecture}.{key} is {value!r}, expected a number")
        return float(str(np.float32(value)))

    def require(self, key: str, expected: object) -> None:
        """Refuse any other value of an optional key."""
        if (found := self.raw(key, expected)) != expected:
            raise UnsupportedModelError(
                f"{self.file.path}: {self.architecture}.{key} is {found!r}, only {expected!r} is supported"
            )

    def refuse_unread(self) -> None:
        for key, off in _OFF_VALUES.items():
            if key not in self._read:
                self.require(key, off)
        prefix = f"{self.architecture}."
        known = {"vocab_size", *self._read}  # the embedding's rows are authoritative
        for key in self.file.metadata:
            if key.startswith(prefix) and key.removeprefix(prefix) not in known:
                raise UnsupportedModelError(f"{self.file.path}: metadata key {key} is not supported")


def _architecture(file: GgufFile) -> str:
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(
            f"{file.path}: architecture {name!r} is not supported (supported: {supported}; mistral ships as llama)"
        )
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModelError(f"{file.path}: split GGUF files are not supported; merge the parts first")
    return str(name)


def hf_config(file: GgufFile) -> dict[str, Any]:
    """The HF config.json of the file's model.

    Raises UnsupportedModelError (architecture, feature) and CheckpointError (missing or malformed keys).
    """
    reader = GgufConfig(file)
    hidden_size, num_heads = reader.integer("embedding_length"), reader.integer("attention.head_count")
    if num_heads < 1:
        raise CheckpointError(f"{file.path}: {reader.architecture}.attention.head_count is {num_heads}")
    head_dim = reader.integer("attention.key_length", hidden_size // num_heads)
    reader.require("attention.value_length", head_dim)
    reader.require("rope.dimension_count", head_dim)
    config = {
        "architectures": [f"{reader.architecture.capitalize()}ForCausalLM"],
        "model_type": ARCHITECTURES[reader.architecture],
        "vocab_size": _vocab_size(file),
        "hidden_size": hidden_size,
        "intermediate_size": reader.integer("feed_forward_length"),
        "num_hidden_layers": reader.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": reader.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": reader.integer("context_length"),
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
        **(_gemma3_keys if reader.architecture == "gemma3" else _llama_like_keys)(reader, head_dim),
        **_token_ids(file),
    }
    reader.refuse_unread()
    return config


def _llama_like_keys(reader: GgufConfig, head_dim: int) -> dict[str, Any]:
    biases = _biases(reader.file, reader.architecture)
    return {"hidden_act": "silu", "rope_parameters": _rope(reader, head_dim), **biases}


def _gemma3_keys(reader: GgufConfig, head_dim: int) -> dict[str, Any]:
    """Gemma 3's constants that llama.cpp has in code: the pattern of windows, the RoPE under them, how 27B scales."""
    is_27b = reader.integer("block_count") == _GEMMA3_27B_LAYERS
    size_per_head = reader.integer("embedding_length") // reader.integer("attention.head_count")
    local = {"rope_type": "default", "rope_theta": reader.number("rope.freq_base_swa", 10000.0)}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": size_per_head if is_27b else head_dim,
        "sliding_window": reader.integer("attention.sliding_window"),
        "sliding_window_pattern": reader.integer("attention.sliding_window_pattern", 6),
        "rope_parameters": {"full_attention": _rope(reader, head_dim), "sliding_attention": local},
    }


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path}: tensor token_embd.weight is missing")
    return embedding.shape[0]


def _biases(file: GgufFile, architecture: str) -> dict[str, bool]:
    """GGUF has no keys for biases: the tensors are there or not. Qwen2 always has them on q, k, v."""
    if architecture == "qwen2":
        return {}
    biases = {"attention_bias": "blk.0.attn_q.bias" in file.tensors}
    return biases if architecture == "qwen3" else {**biases, "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors}


def _token_ids(file: GgufFile) -> dict[str, int]:
    keys = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    found = {name: file.metadata.get(f"tokenizer.ggml.{key}") for name, key in keys.items()}
    return {name: value for name, value in found.items() if isinstance(value, int)}


def _rope(reader: GgufConfig, head_dim: int) -> dict[str, Any]:
    theta = reader.number("rope.freq_base", 10000.0)
    kind = reader.raw("rope.scaling.type", "linear")  # llama.cpp's default; a factor of 1 then changes nothing
    factor = reader.number("rope.scaling.factor", reader.number("rope.scale_linear", 1.0))
    for key in ("rope.scaling.original_context_length", "rope.scaling.finetuned"):
        reader.raw(key)  # says how the model was trained; neither enters the linear formula
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(f"{reader.file.path}: rope.scaling.type {kind!r} is not supported (none, linear)")
    if ROPE_FACTORS in reader.file.tensors:
        return {"rope_theta": theta, **_llama3_scaling(reader.file, theta, head_dim)}
    if kind == "none" or factor == 1.0:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Recover Llama 3's scaling from the per-frequency factors the file carries instead of its parameters."""
    stored = file.dequantize(ROPE_FACTORS)
    parameters = {"factor": float(stored.max()), **_LLAMA3_SCALING}
    expected = llama3_frequency_factors(theta, head_dim, parameters)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise UnsupportedModelError(f"{file.path}: {ROPE_FACTORS} does not hold Llama 3's frequency factors")
    return {"rope_type": "llama3", **parameters}


def llama3_frequency_factors(theta: float, head_dim: int, parameters: dict[str, float]) -> npt.NDArray[np.float64]:
    """What each frequency is divided by, (head_dim / 2,): 1 for short wavelengths, `factor` for long ones, a blend in
    between (Llama 3.1's `apply_scaling`)."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] / wavelengths
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: npt.NDArray[np.float64] = 1.0 / ((1.0 - blend) / parameters["factor"] + blend)
    return factors
