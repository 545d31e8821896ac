"""The native CPU runner: quantized weights mapped from one file, pruned views without copies, a step in one call.

The arithmetic is C++ (`csrc/`), the extension module `_native`; everything here is numpy and plain Python.
"""

from glass_core.runners.native.runner import NativeRunner, load

__all__ = ["NativeRunner", "load"]
