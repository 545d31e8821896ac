"""Memory that loading used and freed, given back to the system: parsing a tokenizer leaves half of its peak behind."""

import ctypes
import gc


def release_free_heap() -> None:
    """Collect garbage and trim the C library's heap. Other libraries than glibc keep what they hold."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
