"""The runner's local statistics against z taken from HF's own FFN by a hook, and their independence of chunking."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from glass_core.sparsity.local_stats import LocalStatistics
from tests.parity.harness import Harness, make_row, singles, split
from tests.parity.variants import FEW_VARIANTS, Variant, hf_logits, random_tokens

PROMPT = random_tokens(30, seed=4)


@pytest.fixture(params=FEW_VARIANTS, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    value: Variant = request.param
    return value


def hf_normalized_z(hf_model: Any, tokens: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """z / ‖z‖ of every layer and token, (num_layers, n, intermediate_size)."""
    seen: list[Tensor] = []
    for layer in hf_model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0].double()))
    hf_logits(hf_model, tokens)
    z: npt.NDArray[np.float64] = torch.stack(seen).numpy()
    normalized: npt.NDArray[np.float64] = z / np.linalg.norm(z, axis=-1, keepdims=True)
    return normalized


def collect(harness: Harness, calls: list[tuple[int, ...]], slot: int) -> LocalStatistics:
    total: LocalStatistics | None = None
    start = 0
    for tokens in calls:
        _, result = harness.step(make_row(tokens, slot=slot, start=start, collect_statistics=True))
        statistics = result.rows[0].statistics
        assert statistics is not None
        total = statistics if total is None else total + statistics
        start += len(tokens)
    assert total is not None
    return total


def test_whole_and_chunked_statistics_equal_hf(variant: Variant, tmp_path: Path) -> None:
    normalized = hf_normalized_z(variant.hf_model(), PROMPT)
    harness = Harness(variant.save(tmp_path))
    for slot, calls in enumerate(([PROMPT], split(PROMPT, 1, 7, 13), singles(PROMPT))):
        statistics = collect(harness, calls, slot)
        assert statistics.num_tokens == len(PROMPT)
        assert statistics.sum_abs.dtype == statistics.sum_squares.dtype == np.float32
        np.testing.assert_allclose(statistics.l1(), np.abs(normalized).mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(statistics.l2(), np.sqrt((normalized**2).sum(axis=1)), atol=1e-5)


def test_one_token_prompt(variant: Variant, tmp_path: Path) -> None:
    normalized = hf_normalized_z(variant.hf_model(), PROMPT[:1])
    statistics = collect(Harness(variant.save(tmp_path)), [PROMPT[:1]], 0)
    np.testing.assert_allclose(statistics.l1(), np.abs(normalized[:, 0]), atol=1e-5)


def test_bfloat16_statistics_are_float32_and_close(variant: Variant, tmp_path: Path) -> None:
    normalized = hf_normalized_z(variant.hf_model(), PROMPT)
    statistics = collect(Harness(variant.save(tmp_path), torch.bfloat16), split(PROMPT, 11), 0)
    assert statistics.sum_abs.dtype == np.float32
    np.testing.assert_allclose((statistics.l2() ** 2).sum(axis=1), len(PROMPT), rtol=1e-5)
    np.testing.assert_allclose(statistics.l1(), np.abs(normalized).mean(axis=1), atol=0.03)
