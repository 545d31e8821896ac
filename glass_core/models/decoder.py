"""What the pre-norm, gated, rotary decoder families share: the sizes in the config and the names in the checkpoint.

A family adds only its own features (biases, norms, windows) to the spec made here.
"""

from collections.abc import Iterator, Mapping

from glass_core.models.config_reader import ConfigReader
from glass_core.models.rope_config import read_rope
from glass_core.models.spec import Activation, ModelSpec, RopeSpec

ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"


def read_decoder(
    reader: ConfigReader,
    *,
    default_kv_heads: int | None = None,
    default_head_dim: int | None = None,
    default_tied: bool = False,
    activation: Activation | None = None,
    rope: RopeSpec | None = None,
) -> ModelSpec:
    """The spec with full attention and no biases.

    The defaults are the family's own for keys a config leaves out; None = derived (kv heads = heads, head_dim =
    hidden_size / heads). `activation` and `rope` of families that spell them in their own way; None = read here.
    """
    hidden_size, num_heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    num_layers, max_positions = reader.size("num_hidden_layers"), reader.size("max_position_embeddings")
    absent = num_heads if default_kv_heads is None or reader.has("num_key_value_heads") else default_kv_heads
    num_kv_heads = reader.size("num_key_value_heads", absent)
    head_dim = _head_dim(reader, hidden_size, num_heads, default_head_dim)
    if num_heads % num_kv_heads:
        raise reader.refused("num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads ({num_heads})")
    return ModelSpec(
        model_type=reader.model_type,
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=reader.size("intermediate_size"),
        num_layers=num_layers,
        num_attention_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope=rope or read_rope(reader, max_position_embeddings=max_positions),
        sliding_window=(None,) * num_layers,
        activation=reader.choice("hidden_act", ACTIVATIONS, "silu") if activation is None else activation,
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=default_tied),
    )


def _head_dim(reader: ConfigReader, hidden_size: int, num_heads: int, default: int | None) -> int:
    if reader.raw("head_dim", default) is None and hidden_size % num_heads:
        raise reader.refused("hidden_size", hidden_size, f"a multiple of num_attention_heads ({num_heads})")
    head_dim = reader.size("head_dim", default or hidden_size // num_heads)
    if head_dim % 2:
        raise reader.refused("head_dim", head_dim, "an even number (rotary embedding turns pairs)")
    return head_dim


def read_sliding_window(reader: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    """Per-layer spans of the qwen configs.

    `use_sliding_window` switches the window on; `layer_types` says where, else layers from `max_window_layers` on.
    """
    enabled = reader.flag("use_sliding_window", default=False)
    window = reader.size("sliding_window", 4096) if _given(reader, "sliding_window") and enabled else None
    first = reader.raw("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise reader.refused("max_window_layers", first, "a non-negative integer")
    sliding = [SLIDING_ATTENTION if window is not None and i >= first else FULL_ATTENTION for i in range(num_layers)]
    return read_layer_windows(reader, sliding, window)


def read_layer_windows(reader: ConfigReader, default_types: list[str], window: int | None) -> tuple[int | None, ...]:
    """Per-layer spans by `layer_types` (missing: the given one name per layer), `window` for the sliding layers."""
    layer_types = reader.raw("layer_types", default_types)
    _check_layer_types(reader, layer_types, len(default_types), window)
    return tuple(window if kind == SLIDING_ATTENTION else None for kind in layer_types)


def _given(reader: ConfigReader, key: str) -> bool:
    """Present and not null, or absent (then the default counts): only an explicit null means off."""
    return reader.raw(key) is not None or not reader.has(key)


def _check_layer_types(reader: ConfigReader, layer_types: object, num_layers: int, window: int | None) -> None:
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise reader.refused("layer_types", layer_types, f"a list of {num_layers} names")
    for kind in layer_types:
        if kind not in (FULL_ATTENTION, SLIDING_ATTENTION):
            raise reader.refused("layer_types", kind, f"{FULL_ATTENTION} or {SLIDING_ATTENTION}")
    if window is None and SLIDING_ATTENTION in layer_types:
        raise reader.refused(
            "layer_types", SLIDING_ATTENTION, "a sliding_window, and use_sliding_window true where there is such a key"
        )


def decoder_tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Canonical name → HF checkpoint name, for every tensor the spec needs."""
    names = ["embed_tokens.weight", "norm.weight"]
    for layer in range(spec.num_layers):
        names += [f"layers.{layer}.{part}" for part in _layer_parts(spec)]
    hf_names = {name: f"model.{name}" for name in names}
    if not spec.tie_word_embeddings:
        hf_names["lm_head.weight"] = "lm_head.weight"
    return hf_names


def _layer_parts(spec: ModelSpec) -> Iterator[str]:
    yield from ("input_layernorm.weight", "post_attention_layernorm.weight")
    for name in ("q_proj", "k_proj", "v_proj"):
        yield from _linear(f"self_attn.{name}", spec.qkv_bias)
    yield from _linear("self_attn.o_proj", spec.attention_output_bias)
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield from _linear(f"mlp.{name}", spec.mlp_bias)
    if spec.qk_norm:
        yield from ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
    if spec.sandwich_norms:
        yield from ("attention_output_norm.weight", "ffn_output_norm.weight")


def _linear(name: str, bias: bool) -> tuple[str, ...]:
    return (f"{name}.weight", f"{name}.bias") if bias else (f"{name}.weight",)


def canonical_shape(spec: ModelSpec, name: str) -> tuple[int, ...]:
    """Shape of a canonical tensor, e.g. `layers.0.mlp.down_proj.weight` → (hidden_size, intermediate_size)."""
    vectors_and_matrices: dict[str, tuple[int, int]] = {
        "embed_tokens": (spec.vocab_size, spec.hidden_size),
        "lm_head": (spec.vocab_size, spec.hidden_size),
        "q_proj": (spec.q_size, spec.hidden_size),
        "k_proj": (spec.kv_size, spec.hidden_size),
        "v_proj": (spec.kv_size, spec.hidden_size),
        "o_proj": (spec.hidden_size, spec.q_size),
        "gate_proj": (spec.intermediate_size, spec.hidden_size),
        "up_proj": (spec.intermediate_size, spec.hidden_size),
        "down_proj": (spec.hidden_size, spec.intermediate_size),
    }
    *_, module, kind = name.split(".")
    if module in vectors_and_matrices:
        shape = vectors_and_matrices[module]
        return shape[:1] if kind == "bias" else shape
    return (spec.head_dim,) if module in ("q_norm", "k_norm") else (spec.hidden_size,)
