"""The heap is trimmed after loading, where the C library can."""

import ctypes

import pytest

from server import heap


class Library:
    """A C library that counts its trims, or one that cannot trim."""

    def __init__(self, *, can_trim: bool) -> None:
        self.trims: list[int] = []
        if can_trim:
            self.malloc_trim = self.trims.append


@pytest.mark.parametrize("can_trim", [True, False])
def test_free_memory_is_given_back_where_that_is_possible(can_trim: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(can_trim=can_trim)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    heap.release_free_heap()
    assert library.trims == ([0] if can_trim else [])
