"""What a runner holds in memory: the image shared between processes, KV blocks only once they are used."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glass_core.config import CacheConfig
from glass_core.runners.base import StepBatch
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.runner import NativeRunner
from tests.native.harness import make_header
from tests.parity.harness import greedy, make_row
from tests.parity.variants import Variant, random_tokens

pytest.importorskip("glass_core.runners.native._native")
SMAPS = Path("/proc/self/smaps")
pytestmark = pytest.mark.skipif(not SMAPS.is_file(), reason="this system has no /proc/self/smaps")

MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ .*$", re.MULTILINE)
MEGABYTE = 1 << 20
# maps the file named by its argument, reads every page of it, says so, and stays until told
READER = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    sum(content[::4096])
    print("read", flush=True)
    sys.stdin.read()
"""


def mappings() -> Iterator[tuple[str, dict[str, int]]]:
    """First line of every mapping of this process, and its sizes in bytes by name."""
    text = SMAPS.read_text(encoding="utf-8", errors="replace")
    starts = [match.start() for match in MAPPING.finditer(text)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        first, _, rest = text[start:end].partition("\n")
        yield first, {name: 1024 * int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", rest, re.MULTILINE)}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> ImageHeader:
    return make_header(Variant("llama", "llama"), tmp_path_factory.mktemp("model"), "bf16")


def test_the_image_is_shared_between_processes(header: ImageHeader) -> None:
    runner = NativeRunner(header, CacheConfig(kv_cache_bytes=MEGABYTE), num_threads=1)
    runner.execute(StepBatch((make_row(random_tokens(9), sample=greedy()),)))
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(header.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "read\n"
        (sizes,) = [sizes for first, sizes in mappings() if first.endswith(str(header.path))]
        reader.communicate()
    assert sizes["Private_Dirty"] == sizes["Shared_Dirty"] == sizes["Anonymous"] == 0
    assert sizes["Shared_Clean"] > sizes["Rss"] / 2 > 0
    runner.close()


@pytest.mark.parametrize("kv_cache_dtype", ["bf16", "int8"])
def test_unused_kv_blocks_take_no_memory(header: ImageHeader, kv_cache_dtype: str) -> None:
    budget = 1 << 30
    cache = CacheConfig(kv_cache_bytes=budget, kv_cache_dtype=kv_cache_dtype)
    before = {first.split()[0] for first, _ in mappings()}
    runner = NativeRunner(header, cache, num_threads=1)
    runner.execute(StepBatch((make_row(random_tokens(9), sample=greedy()),)))
    large = [sizes for first, sizes in mappings() if first.split()[0] not in before and sizes["Size"] > 0.9 * budget]
    assert large and sum(sizes["Rss"] for sizes in large) < 16 * MEGABYTE
    runner.close()
