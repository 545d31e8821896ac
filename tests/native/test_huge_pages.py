"""Reading a file in 2-MB pages leaves it as it is, whether or not the kernel has such pages for it."""

import mmap
import os
from pathlib import Path

import pytest

from glass_core.runners.native import huge_pages
from glass_core.runners.native.huge_pages import huge_page_bytes, keep_in_huge_pages


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 20_000)
    return path


def test_the_content_stays_and_the_count_is_of_whole_pages(file: Path) -> None:
    content = file.read_bytes()
    keep_in_huge_pages(file)
    assert file.read_bytes() == content
    assert huge_page_bytes(file) in (0, 2 << 20, 4 << 20)


def test_a_system_without_the_advice_is_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    keep_in_huge_pages(file)
    assert huge_page_bytes(file) == 0
    assert len(file.read_bytes()) == 256 * 20_000


def test_a_kernel_without_huge_pages_is_survived(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)
    keep_in_huge_pages(file)
    assert huge_page_bytes(file) == 0


def test_a_system_without_smaps_counts_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    assert huge_page_bytes(file) == 0


@pytest.mark.parametrize(
    ("found", "read_again"),
    [((95,), ()), ((40, 0), (2 << 20,)), ((40, 100, 100), (2 << 20, 256 * 20_000))],
    ids=["enough are there", "the system has none", "the file was cached in small pages"],
)
def test_a_file_is_read_again_where_that_helps(
    found: tuple[int, ...], read_again: tuple[int, ...], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`found`: percent of the file in large pages, look by look."""
    looks, dropped = iter(found), []
    size = file.stat().st_size
    monkeypatch.setattr(huge_pages, "_huge_bytes", lambda file, length: next(looks) * size // 100)
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, start, length, advice: dropped.append(length))
    keep_in_huge_pages(file)
    assert tuple(dropped) == read_again
    assert next(looks, None) is None


def test_small_files_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"small")
    monkeypatch.delattr(huge_pages, "_huge_bytes")
    keep_in_huge_pages(path)
