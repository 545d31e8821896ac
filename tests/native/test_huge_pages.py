"""Reading a file in 2-MB pages leaves it as it is, whether or not the kernel has such pages for it."""

import mmap
from pathlib import Path

import pytest

from glass_core.runners.native.huge_pages import huge_page_bytes, read_in_huge_pages


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 20_000)
    return path


def test_the_content_stays_and_the_count_is_of_whole_pages(file: Path) -> None:
    content = file.read_bytes()
    read_in_huge_pages(file)
    assert file.read_bytes() == content
    assert huge_page_bytes(file) in (0, 2 << 20, 4 << 20)


def test_a_system_without_the_advice_is_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    read_in_huge_pages(file)
    assert len(file.read_bytes()) == 256 * 20_000


def test_a_kernel_without_huge_pages_is_survived(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)
    read_in_huge_pages(file)
    assert huge_page_bytes(file) in (0, 2 << 20, 4 << 20)


def test_a_system_without_smaps_counts_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    assert huge_page_bytes(file) == 0
