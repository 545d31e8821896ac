"""Long prompts over the paged cache, bfloat16 and int8: several spans of keys, blocks read in place and gathered.

int8 keys and values (a scale per 32 dimensions) move the logits of tiny random models by less than a tenth of their
spread; leaving out a norm or a rotation moves them by a third and more.
"""

from pathlib import Path

import numpy as np
import pytest

from glass_core.config import CacheConfig
from glass_core.errors import ConfigurationError
from glass_core.runners.native.runner import kv_block_bytes
from server.__main__ import build_parser
from server.config import Settings
from tests.native.harness import NativeHarness, correlation_error, make_header, save_decoded
from tests.parity.harness import Harness, greedy, make_plan, make_row, singles, split
from tests.parity.variants import VARIANTS, Variant, random_tokens

ISAS = pytest.importorskip("glass_core.runners.native._native").kernels.available_isas()
KV_DTYPES = ("bf16", "int8")
PROMPT = random_tokens(245, seed=1)
# read in place (16 positions of 16 dimensions), gathered because of the block size, and because of the head size
CASES = (
    (Variant("qwen3", "qwen3"), 16),
    (Variant("mistral-window", "mistral", {"sliding_window": 150, "head_dim": 32, "num_key_value_heads": 1}), 20),
    (Variant("llama-wide-heads", "llama", {"head_dim": 36}), 16),
)
INT8_TOLERANCE = 0.1

each_case = pytest.mark.parametrize(("variant", "block_size"), CASES, ids=lambda value: getattr(value, "name", value))
each_kv = pytest.mark.parametrize("kv_dtype", KV_DTYPES)


@each_kv
@each_case
@pytest.mark.parametrize("isa", ISAS)
def test_chunks_equal_the_whole(variant: Variant, block_size: int, kv_dtype: str, isa: str, tmp_path: Path) -> None:
    header = make_header(variant, tmp_path, "int8")
    native = NativeHarness(header, isa=isa, kv_cache_dtype=kv_dtype, block_size=block_size)
    every = native.feed([PROMPT[:90], *singles(PROMPT[90:])], slot=0)
    sizes = (90, 17, 1, 100, 16, 5)
    ends = np.cumsum([*sizes, len(PROMPT) - sum(sizes)]) - 90
    np.testing.assert_array_equal(native.feed(split(PROMPT, *sizes), slot=1), every[ends])
    np.testing.assert_array_equal(native.feed([PROMPT], slot=2), every[-1:])


@each_kv
@each_case
def test_a_batch_and_a_shared_prefix_equal_single_rows(
    variant: Variant, block_size: int, kv_dtype: str, tmp_path: Path
) -> None:
    header = make_header(variant, tmp_path, "int4")
    native = NativeHarness(header, kv_cache_dtype=kv_dtype, block_size=block_size, num_threads=3)
    plan = make_plan(native.spec, (30, native.spec.intermediate_size, 7))
    for slot, length in enumerate((240, 130, 3)):
        native.feed([PROMPT[:length]], slot=slot)
    shared = make_row(PROMPT[:1], slot=0).block_table
    rows = (
        make_row(PROMPT[-1:], slot=0, start=240, plan=plan, sample=greedy()),
        make_row(PROMPT[-3:], slot=1, start=130, sample=greedy()),
        make_row(PROMPT[-1:], slot=2, start=3, sample=greedy()),
        make_row(PROMPT[160:180], slot=3, start=160, block_table=shared, sample=greedy()),
    )
    whole = native.feed([PROMPT[:180]], slot=4)
    together, _ = native.step(*rows)
    np.testing.assert_array_equal(together[3:], whole)
    for row, logits in zip(rows, together, strict=True):
        np.testing.assert_array_equal(native.step(row)[0][0], logits)


@each_case
def test_long_prompts_equal_torch(variant: Variant, block_size: int, tmp_path: Path) -> None:
    header = make_header(variant, tmp_path / "model", "bf16")
    torch_runner = Harness(save_decoded(header, tmp_path / "model", tmp_path / "decoded"))
    tokens = PROMPT[:64]  # what the torch harness has room for
    native = NativeHarness(header, block_size=block_size)
    assert correlation_error(native.feed(singles(tokens)), torch_runner.feed([tokens]).numpy()) < 0.015


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_int8_stays_close_to_bf16(variant: Variant, tmp_path: Path) -> None:
    header = make_header(variant, tmp_path, "bf16")
    logits = [
        NativeHarness(header, kv_cache_dtype=kv_dtype, block_size=16).feed(
            split(PROMPT, 20, 40, 60, 3), num_prompt_tokens=len(PROMPT)
        )
        for kv_dtype in KV_DTYPES
    ]
    assert 0 < correlation_error(logits[1], logits[0]) < INT8_TOLERANCE


def test_int8_holds_nearly_twice_the_tokens(tmp_path: Path) -> None:
    spec = make_header(Variant("qwen3", "qwen3", {"head_dim": 64}), tmp_path, "bf16").spec
    per_head = 2 * 3 * 2 * 16  # keys and values, layers, heads, positions
    assert kv_block_bytes(spec, 16, "bf16") == per_head * 2 * 64
    assert kv_block_bytes(spec, 16, "int8") == per_head * (64 + 2 * 4)


def test_the_server_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = vars(build_parser().parse_args(["--kv-cache-dtype", "int8"]))
    assert Settings(**flags).cache_config() == CacheConfig(kv_cache_dtype="int8")
    monkeypatch.setenv("GLASS_KV_CACHE_DTYPE", "int8")
    assert Settings().cache_config().kv_cache_dtype == "int8"


def test_another_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"kv_cache_dtype must be one of bf16, int8, got 'fp8'"):
        CacheConfig(kv_cache_dtype="fp8")
