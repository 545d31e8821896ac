"""A token whose embedding is NaN, on the native and the torch runner: the rows that hold it fail, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from glass_core.checkpoint.prepared import SINGLE_FILE, open_prepared
from glass_core.runners.base import RowResult, SampleInput, StepRow
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.sampling import NOT_FINITE, token_logprobs
from tests.native.harness import FORMATS, NativeHarness
from tests.parity.harness import Harness, greedy, make_plan, make_row
from tests.tiny_models import save_tiny_model

pytest.importorskip("glass_core.runners.native._native")

POISON = 5
GOOD, OTHER = (9, 8, 7, 11, 12), (3, 4, 200)
BAD = (9, POISON, 7)
SAMPLE = greedy()
BUDGETS = (30, 88, 7)

Step = Callable[..., tuple[RowResult, ...]]


def poison_image(header: ImageHeader) -> None:
    """All bits of the embedding's row become ones: NaN as bfloat16, and as a scale of any quantized block."""
    tensor = header.tensors["embed_tokens"]
    with header.path.open("r+b") as image:
        image.seek(header.payload_offset + tensor.offset + POISON * tensor.row_bytes)
        image.write(b"\xff" * tensor.row_bytes)


def native_step(folder: Path, image_format: str) -> Step:
    model_dir = save_tiny_model(folder, "llama", tie_word_embeddings=False)
    header = make_image(open_prepared(model_dir), image_format)
    poison_image(header)
    harness = NativeHarness(header)
    return lambda *rows: harness.step(*rows)[1].rows


def torch_step(folder: Path) -> Step:
    model_dir = save_tiny_model(folder, "llama", tie_word_embeddings=False)
    tensors = load_file(model_dir / SINGLE_FILE)
    tensors["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(tensors, model_dir / SINGLE_FILE, {"format": "pt"})
    harness = Harness(model_dir)
    return lambda *rows: harness.step(*rows)[1].rows


@pytest.fixture(params=[*FORMATS, "torch"])
def step(request: pytest.FixtureRequest, tmp_path: Path) -> Step:
    return torch_step(tmp_path) if request.param == "torch" else native_step(tmp_path, request.param)


def rows_around(*middle: StepRow) -> tuple[StepRow, ...]:
    return (make_row(GOOD, slot=0, sample=SAMPLE), *middle, make_row(OTHER, slot=2, sample=SAMPLE))


def test_only_the_row_with_the_bad_token_fails(step: Step) -> None:
    alone = [step(row)[0].token_id for row in rows_around()]
    first, failed, last = step(*rows_around(make_row(BAD, slot=1, sample=SAMPLE)))
    assert (failed.token_id, failed.logprobs, failed.error) == (None, None, NOT_FINITE)
    assert [first.token_id, last.token_id] == alone
    assert first.error is last.error is None


def test_a_bad_decode_row_under_a_plan_leaves_its_mates_as_they_are(step: Step, tmp_path: Path) -> None:
    spec = open_prepared(tmp_path).spec
    plans = [make_plan(spec, BUDGETS, seed=seed) for seed in (1, 2)]
    prompts = [make_row(GOOD, slot=slot, sample=SAMPLE) for slot in (0, 1)]
    drawn = [result.token_id for result in step(*prompts)]
    good = make_row(GOOD[:1], start=len(GOOD), slot=0, plan=plans[0], sample=SAMPLE)
    alone = step(good)[0].token_id
    assert None not in (*drawn, alone)
    bad = make_row((POISON,), start=len(GOOD), slot=1, plan=plans[1], sample=SAMPLE)
    fine, failed = step(good, bad)
    assert (fine.token_id, failed.error) == (alone, NOT_FINITE)


def test_blocks_of_a_failed_row_serve_another_sequence(step: Step) -> None:
    expected = step(make_row(OTHER, slot=0, sample=SAMPLE))[0].token_id
    assert step(make_row(BAD * 3, slot=1, sample=SAMPLE))[0].error == NOT_FINITE
    table = make_row(BAD * 3, slot=1).block_table
    again = step(make_row(OTHER, slot=0, block_table=table, sample=SAMPLE))[0]
    assert again.token_id == expected


def test_a_bad_row_that_samples_and_wants_log_probabilities_fails_too(step: Step) -> None:
    sample = SampleInput(replace(SAMPLE.params, temperature=0.7, top_p=0.9, num_logprobs=3), BAD, ())
    (failed,) = step(make_row(BAD, sample=sample))
    assert (failed.token_id, failed.logprobs, failed.error) == (None, None, NOT_FINITE)


def test_log_probabilities_of_a_native_step_are_the_references(tmp_path: Path) -> None:
    header = make_image(open_prepared(save_tiny_model(tmp_path, "llama")), "int8")
    native = NativeHarness(header)
    wanted = replace(SAMPLE.params, temperature=0.8, seed=4, num_logprobs=4, presence_penalty=1.0)
    sample = SampleInput(wanted, GOOD, ())
    logits, result = native.step(
        make_row(OTHER, slot=1, sample=SAMPLE), make_row(GOOD, sample=sample), make_row(GOOD, slot=2)
    )
    plain, detailed, silent = result.rows
    assert (plain.logprobs, silent.logprobs, silent.token_id) == (None, None, None)
    assert detailed.token_id is not None
    assert detailed.logprobs == token_logprobs(logits[1], detailed.token_id, 4)
