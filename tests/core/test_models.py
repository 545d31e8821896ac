"""Model families: HF configs in both spellings become specs; every feature we do not implement is refused by name."""

from typing import Any

import pytest

from glass_core.errors import UnsupportedModelError
from glass_core.models.decoder import canonical_shape
from glass_core.models.registry import load_spec, supported_families, tensor_names
from glass_core.models.spec import RopeSpec
from tests.tiny_models import FAMILIES, tiny_config, tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """A minimal config.json as older transformers wrote it."""
    return {
        "model_type": family,
        "vocab_size": 300,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        **changes,
    }


def test_families_are_the_files() -> None:
    assert supported_families() == ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_spec_names_and_shapes_match_transformers(family: str) -> None:
    model = (
        tiny_model(family, attention_bias=True) if family in ("gemma3_text", "llama", "qwen3") else tiny_model(family)
    )
    spec = load_spec(model.config.to_dict())
    names = tensor_names(spec)
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert sorted(names.values()) == sorted(parameters)
    for canonical, name in names.items():
        assert canonical_shape(spec, canonical) == parameters[name]


def gemma(**changes: Any) -> dict[str, Any]:
    """Gemma 3's config.json as older transformers wrote it, without the keys that have defaults."""
    without = {key: value for key, value in config("gemma3_text").items() if key != "hidden_act"}
    return {**without, "num_hidden_layers": 7, "sliding_window": 512, **changes}


def test_gemma_without_its_optional_keys() -> None:
    spec = load_spec(gemma())
    assert spec.sliding_window == (512,) * 5 + (None, 512)
    assert (spec.rope, spec.local_rope) == (RopeSpec(1e6), RopeSpec(1e4))
    assert [spec.rope_index(layer) for layer in range(7)] == [1, 1, 1, 1, 1, 0, 1]
    assert (spec.activation, spec.norm_offset, spec.sandwich_norms, spec.qk_norm) == ("gelu_tanh", 1.0, True, True)
    assert (spec.embedding_scale, spec.score_scale, spec.tie_word_embeddings) == (48**0.5, 1 / 16, True)


def test_gemma_scales_the_rope_of_full_layers_only() -> None:
    old = load_spec(gemma(rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 8.0}))
    by_type = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}, "sliding_attention": None}
    assert old == load_spec(gemma(rope_parameters=by_type))
    assert (old.rope, old.local_rope) == (RopeSpec(5e5, "linear", 8.0), RopeSpec(1e4))


def test_gemma_names_both_norms_of_a_branch() -> None:
    names = tensor_names(load_spec(gemma()))
    assert names["layers.2.attention_output_norm.weight"] == "model.layers.2.post_attention_layernorm.weight"
    assert names["layers.2.post_attention_layernorm.weight"] == "model.layers.2.pre_feedforward_layernorm.weight"
    assert names["layers.2.ffn_output_norm.weight"] == "model.layers.2.post_feedforward_layernorm.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "soft-capping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"sliding_window": None}, "sliding_window"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "by full_attention and sliding_attention"),
        ({"rope_parameters": {"full_attention": 3}}, "full_attention is 3, expected an object"),
        ({"rope_scaling": 3}, "rope_scaling is 3, expected an object"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic', expected default, linear or llama3"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ],
)
def test_gemma_refuses_what_is_not_implemented(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load_spec(gemma(**changes))


def test_mlp_bias_adds_tensors() -> None:
    names = tensor_names(load_spec(config(mlp_bias=True)))
    assert {"layers.3.mlp.gate_proj.bias", "layers.3.mlp.down_proj.bias"} <= set(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_transformers_5_config_is_accepted(family: str) -> None:
    spec = load_spec(tiny_config(family).to_dict())
    assert (spec.hidden_size, spec.intermediate_size, spec.num_layers, spec.num_kv_heads) == (48, 88, 3, 2)
    assert spec.head_dim == (16 if family in ("gemma3_text", "qwen3") else 12)
    assert spec.qkv_bias == (family == "qwen2")
    assert spec.qk_norm == (family in ("gemma3_text", "qwen3"))
    assert spec.sliding_window == ((7, None, 7) if family == "gemma3_text" else (None, None, None))


def test_missing_and_null_kv_heads_mean_one_per_head_for_llama() -> None:
    missing = config()
    del missing["num_key_value_heads"]
    assert load_spec(missing).num_kv_heads == 4
    assert load_spec(config(num_key_value_heads=None)).num_kv_heads == 4


def test_missing_kv_heads_follow_the_family_default() -> None:
    missing = config("mistral", num_attention_heads=16)
    del missing["num_key_value_heads"]
    assert load_spec({**missing, "head_dim": 4}).num_kv_heads == 8


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, RopeSpec(theta=10000.0)),
        ({"rope_theta": 5e5}, RopeSpec(theta=5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeSpec(theta=5e5)),
        ({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2}}, RopeSpec(7.0, "linear", 2.0)),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 7.0, "factor": 2.0}},
            RopeSpec(7.0, "dynamic", 2.0, original_max_position=512),
        ),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, RopeSpec(5e5, "llama3", 8.0, 128, 1.0, 4.0)),
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, RopeSpec(5e5, "llama3", 8.0, 128, 1.0, 4.0)),
        (
            {
                "rope_scaling": {**LLAMA3, "original_max_position_embeddings": None},
                "original_max_position_embeddings": 64,
            },
            RopeSpec(10000.0, "llama3", 8.0, 64, 1.0, 4.0),
        ),
    ],
)
def test_rope_in_both_spellings(changes: dict[str, Any], expected: RopeSpec) -> None:
    assert load_spec(config(**changes)).rope == expected


def test_mistral_window_missing_null_and_set() -> None:
    assert load_spec(config("mistral")).sliding_window == (4096,) * 4
    assert load_spec(config("mistral", sliding_window=None)).sliding_window == (None,) * 4
    assert load_spec(config("mistral", sliding_window=16)).sliding_window == (16,) * 4


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_window_by_switch_and_by_layer_types(family: str) -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 16}
    alternating = ["full_attention", "sliding_attention"] * 2
    assert load_spec(config(family, sliding_window=16, max_window_layers=1)).sliding_window == (None,) * 4
    assert load_spec(config(family, max_window_layers=3, **windowed)).sliding_window == (None, None, None, 16)
    assert load_spec(config(family, layer_types=alternating, **windowed)).sliding_window == (None, 16, None, 16)
    off = load_spec(config(family, use_sliding_window=True, sliding_window=None, max_window_layers=0))
    assert off.sliding_window == (None,) * 4


def test_bookkeeping_keys_are_ignored() -> None:
    harmless: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
        "attention_dropout": 0.1,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "_name_or_path": "x",
        "something_new": None,
    }
    assert load_spec(config(**harmless)) == load_spec(config())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "gemma3"}, "gemma3.*llama, mistral, qwen2, qwen3"),
    ("llama", {"model_type": None}, "None.*supported"),
    ("llama", {"model_type": "registry"}, "registry"),
    ("llama", {"model_type": "config_reader"}, "config_reader"),
    ("llama", {"model_type": "../llama"}, "supported"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type.*yarn"),
    ("qwen2", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type.*longrope"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": -1}}, "factor.*-1"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor.*None"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling.*object"),
    ("llama", {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2}}, "rope type"),
    ("llama", {"rope_scaling": {"mrope_section": [1, 2]}}, "mrope_section"),
    ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "high_freq_factor"),
    ("llama", {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}}, "rope_scaling"),
    ("llama", {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "rope_theta"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_theta": float("inf")}, "rope_theta"),
    ("llama", {"hidden_act": "relu"}, "hidden_act.*relu.*silu"),
    ("llama", {"hidden_act": ["silu"]}, "hidden_act"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config.*quantized"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp is 2"),
    ("llama", {"num_experts": 8}, "num_experts.*mixture of experts"),
    ("mistral", {"num_local_experts": 8}, "mixture of experts"),
    ("llama", {"final_logit_softcapping": 30.0}, "soft-capping"),
    ("llama", {"attention_multiplier": 0.1}, "unknown key 'attention_multiplier'"),
    ("llama", {"novel": "x" * 100}, r"unknown key 'novel' \('xxx.*\.\.\.\)"),
    ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "custom code"),
    ("llama", {"sliding_window": 16}, "sliding_window"),
    ("mistral", {"attention_bias": True}, "attention_bias is True"),
    ("llama", {"attention_bias": "yes"}, "attention_bias.*true or false"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ("llama", {"hidden_size": True}, "hidden_size is True"),
    ("llama", {"vocab_size": None}, "vocab_size.*missing"),
    ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads.*divisor"),
    ("llama", {"num_attention_heads": 7, "num_key_value_heads": 7}, "hidden_size.*multiple"),
    ("llama", {"head_dim": 11}, "head_dim is 11"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen2", {"layer_types": ["linear_attention"] * 4}, "linear_attention"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "use_sliding_window"),
    ("qwen2", {"max_window_layers": -1}, "max_window_layers"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_is_not_implemented_is_refused_by_name(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load_spec(config(family, **changes))
