"""The dense forward pass against HF transformers, on every family and feature, through every way tokens can arrive."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.model import TorchModel
from tests.parity.harness import Harness, singles, split
from tests.parity.variants import (
    DYNAMIC,
    FEW_VARIANTS,
    TRAINED_LENGTH,
    VARIANTS,
    Variant,
    hf_logits,
    hf_logits_in_calls,
    random_tokens,
)

PROMPT = random_tokens(45)
ATOL = 1e-4


def assert_parity(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(actual, expected, atol=ATOL, rtol=0)


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    value: Variant = request.param
    return value


def test_every_arrival_of_a_prompt_equals_hf(variant: Variant, tmp_path: Path) -> None:
    expected = hf_logits(variant.hf_model(), PROMPT)
    harness = Harness(variant.save(tmp_path))
    length = {"num_prompt_tokens": len(PROMPT)}
    assert_parity(harness.feed([PROMPT]), expected)
    assert_parity(harness.feed(split(PROMPT, 5, 1, 26), slot=1, **length), expected)
    assert_parity(harness.feed(singles(PROMPT), slot=2, **length), expected)


def test_decoding_equals_hf_with_its_own_cache(variant: Variant, tmp_path: Path) -> None:
    calls = [PROMPT[:20], *singles(PROMPT[20:])]
    expected = hf_logits_in_calls(variant.hf_model(), calls)
    harness = Harness(variant.save(tmp_path))
    assert_parity(harness.feed(calls, num_prompt_tokens=20), expected)


def test_sequence_cache_equals_hf_call_by_call(variant: Variant, tmp_path: Path) -> None:
    calls = split(PROMPT, 9, 1, 20)
    expected = hf_logits_in_calls(variant.hf_model(), calls)
    model = TorchModel.load(variant.save(tmp_path), dtype=torch.float32, device="cpu")
    cache, parts = SequenceCache(model.spec), []
    for tokens in calls:
        positions = torch.arange(cache.num_tokens, cache.num_tokens + len(tokens))
        parts.append(model.logits(model.forward(torch.tensor(tokens), positions, attention=cache, ffn=model.dense_ffn)))
    assert_parity(torch.cat(parts), expected)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_dynamic_rope_of_a_long_prompt_then_decoding_equals_hf(family: str, tmp_path: Path) -> None:
    variant = Variant("dynamic", family, DYNAMIC)
    prompt, answer = PROMPT[: TRAINED_LENGTH + 10], PROMPT[TRAINED_LENGTH + 10 :]
    expected = hf_logits_in_calls(variant.hf_model(), [prompt, *singles(answer)])
    harness = Harness(variant.save(tmp_path))
    length = {"num_prompt_tokens": len(prompt)}
    assert_parity(harness.feed([*split(prompt, 7, 20), *singles(answer)], **length), expected)
    # a recomputed sequence arrives in other pieces
    assert_parity(harness.feed([*split(prompt, 30), answer], slot=1, **length), expected)


def test_dynamic_rope_without_a_prompt_length_counts_a_row_as_one_hf_call(tmp_path: Path) -> None:
    variant = Variant("dynamic", "llama", DYNAMIC)
    calls = split(PROMPT, 10, 20)
    harness = Harness(variant.save(tmp_path))
    assert_parity(harness.feed(calls), hf_logits_in_calls(variant.hf_model(), calls))


@pytest.mark.parametrize("variant_", FEW_VARIANTS, ids=lambda variant: variant.name)
def test_one_token_prompt(variant_: Variant, tmp_path: Path) -> None:
    harness = Harness(variant_.save(tmp_path))
    assert_parity(harness.feed([PROMPT[:1]]), hf_logits(variant_.hf_model(), PROMPT[:1]))


@pytest.mark.parametrize("variant_", FEW_VARIANTS, ids=lambda variant: variant.name)
def test_bfloat16_equals_hf_in_bfloat16_up_to_rounding(variant_: Variant, tmp_path: Path) -> None:
    exact = hf_logits(variant_.hf_model(), PROMPT)
    rounded = hf_logits(variant_.hf_model().bfloat16(), PROMPT).float()
    actual = Harness(variant_.save(tmp_path), torch.bfloat16).feed(split(PROMPT, 11))
    assert actual.dtype == torch.float32
    # as far from the exact answer as HF's own rounding, not further
    assert (actual - exact).square().mean() < 1.5 * (rounded - exact).square().mean()


def test_dense_rows_equal_the_plain_dense_model_bit_for_bit(tmp_path: Path) -> None:
    harness = Harness(FEW_VARIANTS[0].save(tmp_path))
    model = harness.model
    with torch.inference_mode():
        hidden = TorchModel.forward(
            model,
            torch.tensor(PROMPT),
            torch.arange(len(PROMPT)),
            attention=SequenceCache(model.spec),
            ffn=model.dense_ffn,
        )
        expected = model.logits(hidden)
    assert torch.equal(harness.feed([PROMPT]), expected)


def test_forks_share_the_past_and_grow_on_their_own(tmp_path: Path) -> None:
    model = TorchModel.load(FEW_VARIANTS[0].save(tmp_path), dtype=torch.float32, device="cpu")

    def run(cache: SequenceCache, tokens: tuple[int, ...]) -> torch.Tensor:
        positions = torch.arange(cache.num_tokens, cache.num_tokens + len(tokens))
        return model.logits(model.forward(torch.tensor(tokens), positions, attention=cache, ffn=model.dense_ffn))

    past = SequenceCache(model.spec)
    run(past, PROMPT[:20])
    fork = past.fork()
    other = run(fork, PROMPT[30:])
    original = run(past, PROMPT[20:30])
    assert (past.num_tokens, fork.num_tokens) == (30, 35)
    hf = FEW_VARIANTS[0].hf_model()
    assert_parity(original, hf_logits(hf, PROMPT[:30])[20:])
    assert_parity(other, hf_logits(hf, PROMPT[:20] + PROMPT[30:])[20:])
