"""Finds the model families: every module of this package that exports `spec_from_config`, by its file name.

The list of files is the allow-list; a `model_type` from a downloaded config is only looked up in it, never imported.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol, cast

from glass_core import models
from glass_core.errors import UnsupportedModelError
from glass_core.models.spec import ModelSpec


class FamilyModule(Protocol):
    """What a family file exports."""

    def spec_from_config(self, config: Mapping[str, Any]) -> ModelSpec: ...

    def tensor_names(self, spec: ModelSpec) -> dict[str, str]: ...


@cache
def _families() -> Mapping[str, FamilyModule]:
    names = (info.name for info in pkgutil.iter_modules(models.__path__) if info.name != "registry")
    modules = {name: importlib.import_module(f"{models.__name__}.{name}") for name in names}
    return {name: cast(FamilyModule, module) for name, module in modules.items() if hasattr(module, "spec_from_config")}


def supported_families() -> tuple[str, ...]:
    """Names usable as `model_type`, sorted."""
    return tuple(sorted(_families()))


def load_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of an HF config. Raises UnsupportedModelError naming what is supported."""
    return find_family(config.get("model_type")).spec_from_config(config)


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Canonical name → HF checkpoint name, for the spec's family."""
    return find_family(spec.model_type).tensor_names(spec)


def find_family(model_type: object) -> FamilyModule:
    """The family's module. Raises UnsupportedModelError naming what is supported."""
    if not isinstance(model_type, str) or model_type not in _families():
        supported = ", ".join(supported_families())
        raise UnsupportedModelError(f"model_type {model_type!r} is not supported (supported: {supported})")
    return _families()[model_type]
