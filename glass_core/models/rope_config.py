"""Rotary-embedding settings of an HF config, in both spellings.

Old configs carry `rope_theta` and `rope_scaling` (with `type` or `rope_type`); transformers 5 writes everything into
`rope_parameters`. Scaling types and keys that are not implemented are refused by name.
"""

from collections.abc import Mapping
from typing import Any, cast, get_args

from glass_core.errors import UnsupportedModelError
from glass_core.models.config_reader import ConfigReader, positive_number
from glass_core.models.spec import RopeKind, RopeSpec

DEFAULT_THETA = 10000.0
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_KEYS_BY_KIND: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": _LLAMA3_KEYS,
}


def read_rope(reader: ConfigReader, *, max_position_embeddings: int) -> RopeSpec:
    """RopeSpec of a config.

    `original_max_position` is the length the scaling starts from: llama3's own key; for `dynamic` the context length,
    as transformers computes it.
    """
    parameters = _parameters(reader)
    theta = _theta(reader, parameters)
    kind = _kind(reader, parameters)
    _check_keys(reader, kind, parameters, max_position_embeddings)
    values = {key: _value(reader, parameters, key) for key in _KEYS_BY_KIND[kind]}
    if kind == "llama3":
        return _llama3(reader, theta, values)
    original = max_position_embeddings if kind == "dynamic" else None
    return RopeSpec(theta=theta, kind=kind, factor=values.get("factor", 1.0), original_max_position=original)


def _parameters(reader: ConfigReader) -> dict[str, Any]:
    """The one mapping of rope settings, `type` renamed to `rope_type`."""
    scaling, parameters = reader.raw("rope_scaling", {}), reader.raw("rope_parameters", {})
    for key, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if not isinstance(value, Mapping):
            raise reader.refused(key, value, "an object")
    if scaling and parameters and dict(scaling) != dict(parameters):
        raise reader.refused("rope_scaling", scaling, "nothing else than rope_parameters says")
    merged = dict(parameters or scaling)
    legacy = merged.pop("type", None)
    if legacy is not None and merged.setdefault("rope_type", legacy) != legacy:
        raise reader.refused("rope type", legacy, f"the same as rope_type ({merged['rope_type']!r})")
    return merged


def _theta(reader: ConfigReader, parameters: Mapping[str, Any]) -> float:
    outer, inner = reader.raw("rope_theta"), parameters.get("rope_theta")
    if outer is not None and inner is not None and outer != inner:
        raise reader.refused("rope_theta", outer, f"the same as in rope_parameters ({inner!r})")
    value = outer if inner is None else inner
    return positive_number(DEFAULT_THETA if value is None else value, f"{reader.model_type} config: rope_theta")


def _kind(reader: ConfigReader, parameters: Mapping[str, Any]) -> RopeKind:
    kind = parameters.get("rope_type", "default")
    if kind not in get_args(RopeKind):
        raise reader.refused("rope_type", kind, f"one of {', '.join(get_args(RopeKind))}")
    return cast(RopeKind, kind)


def _check_keys(reader: ConfigReader, kind: str, parameters: Mapping[str, Any], max_positions: int) -> None:
    known = {"rope_type", "rope_theta", *_KEYS_BY_KIND[kind]}
    # harmless at these values only: full rotation, and a scaling that starts at the model's own length
    neutral = {"partial_rotary_factor": 1.0, "original_max_position_embeddings": max_positions}
    for key, value in parameters.items():
        if key in known or value is None or neutral.get(key) == value:
            continue
        raise UnsupportedModelError(
            f"{reader.model_type} config: rope setting {key} ({value!r}) is not supported with rope_type {kind!r}"
        )


def _value(reader: ConfigReader, parameters: Mapping[str, Any], key: str) -> float:
    value = parameters.get(key)
    if value is None and key == "original_max_position_embeddings":
        value = reader.raw(key)
    return positive_number(value, f"{reader.model_type} config: rope setting {key}")


def _llama3(reader: ConfigReader, theta: float, values: Mapping[str, float]) -> RopeSpec:
    low, high = values["low_freq_factor"], values["high_freq_factor"]
    if high <= low:
        raise reader.refused("high_freq_factor", high, f"more than low_freq_factor ({low})")
    return RopeSpec(
        theta=theta,
        kind="llama3",
        factor=values["factor"],
        original_max_position=int(values["original_max_position_embeddings"]),
        low_freq_factor=low,
        high_freq_factor=high,
    )
