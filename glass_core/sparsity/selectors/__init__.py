"""Selection methods, one file each; the file's name is the method's public name.

`load_selectors` lists this package's own files, so a name that comes from a request is only ever looked up, never
imported. A new method is a new file with a `SELECTOR`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from glass_core.sparsity.selectors.base import Selector, SelectorModule

_NOT_A_METHOD = "base"


def load_selectors() -> "Mapping[str, Selector]":
    """Every method by public name, sorted. `dense` is not among them: it is the absence of a plan."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != _NOT_A_METHOD)
    modules = {name: cast("SelectorModule", importlib.import_module(f"{__name__}.{name}")) for name in names}
    return {name: module.SELECTOR for name, module in modules.items()}
