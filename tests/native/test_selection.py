"""Choosing neurons in the extension: the reference's choice bit for bit, and its refusals word for word."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glass_core.api import DENSE_METHOD
from glass_core.checkpoint.prepared import open_prepared
from glass_core.errors import EngineFailureError
from glass_core.runners.native import selection
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.selection import NativeChooser
from glass_core.runners.native.types import NativeModel
from glass_core.sparsity.choice import Choice, NeuronChooser, choose_neurons
from glass_core.sparsity.ranking import UnrankableError, ranks
from tests.core.sparsity_samples import make_local, make_selector, make_statistics, property_test, sparse
from tests.native.harness import NativeHarness
from tests.tiny_models import save_tiny_model

pytest.importorskip("glass_core.runners.native._native")

Array = npt.NDArray[Any]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# few distinct values, so that ties are the rule; both zeros, a subnormal, the ends of the range
coarse = st.sampled_from([-2.0, -0.0, 0.0, 1e-45, 0.5, 0.5000001, 3.0, 3.4028235e38, -3.4028235e38])
lambdas_ = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0, 1e-6, 0.499999]) | st.floats(0.0, 1.0)


@pytest.fixture(scope="module", params=[1, 3], ids=["1 thread", "3 threads"])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeHarness:
    folder = save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")
    return NativeHarness(make_image(open_prepared(folder), "int4"), num_threads=request.param)


@pytest.fixture(scope="module")
def native(harness: NativeHarness) -> NeuronChooser:
    return harness.runner.choose_neurons


@pytest.fixture
def no_reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The extension must answer by itself."""

    def refuse(*_: Any) -> Choice:
        raise AssertionError("the extension left the choice to the reference")

    with monkeypatch.context() as patch:
        patch.setattr(selection, "choose_neurons", refuse)
        yield


def assert_same(actual: Choice, expected: Choice) -> None:
    assert [kept.tolist() for kept in actual.neurons] == [kept.tolist() for kept in expected.neurons]
    assert all(kept.dtype == np.int32 and not kept.flags.writeable for kept in actual.neurons)
    assert actual.share_within_reference == expected.share_within_reference


@st.composite
def questions(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments of a NeuronChooser: one side or both, budgets from none to all but never none in all layers."""
    num_layers, num_neurons = draw(st.integers(1, 4)), draw(st.integers(1, 40) | st.sampled_from([64, 129, 700]))
    shape = (num_layers, num_neurons)
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    values = hnp.arrays(np.float32, shape, elements=finite | coarse, fill=coarse)
    prompt = draw(values | st.just(generator.gamma(0.3, size=shape).astype(np.float32)))
    model, reference = (ranks(generator.random(shape, dtype=np.float32)) for _ in range(2))
    sides = draw(st.sampled_from([(prompt, None), (None, model), (prompt, model)]))
    lambdas = draw(st.lists(lambdas_, min_size=num_layers, max_size=num_layers))
    budgets = draw(st.lists(st.integers(0, num_neurons), min_size=num_layers, max_size=num_layers))
    budgets[draw(st.integers(0, num_layers - 1))] = draw(st.integers(1, num_neurons))
    return (*sides, lambdas, budgets, draw(st.sampled_from([None, reference, model])))


@property_test
@given(question=questions())
def test_the_choice_is_the_reference_s(native: NeuronChooser, question: tuple[Any, ...]) -> None:
    assert_same(native(*question), choose_neurons(*question))


@pytest.mark.parametrize("scale", [1.0, 1e-30], ids=["ordinary", "beside one outlier"])
@pytest.mark.usefixtures("no_reference")
def test_a_large_model_is_chosen_from_by_the_extension(native: NeuronChooser, scale: float) -> None:
    generator = np.random.default_rng(0)
    values = (generator.lognormal(size=(5, 9000)) * scale).astype(np.float32)
    values[:, 7] = 1.0
    values[1] = np.round(values[1], 1)
    model = ranks(generator.random((5, 9000), dtype=np.float32))
    question = (values, model, [0.5, 0.499999, 0.3, 0.0, 1.0], [1, 4500, 9000, 0, 8999], model)
    assert_same(native(*question), choose_neurons(*question))


@pytest.mark.parametrize("method", [name for name in make_selector(make_statistics()).methods if name != DENSE_METHOD])
@pytest.mark.parametrize("lambda_", [None, 0.0, 0.3, 1.0])
@pytest.mark.usefixtures("no_reference")
def test_every_method_selects_the_same_plan(native: NeuronChooser, method: str, lambda_: float | None) -> None:
    statistics = make_statistics()
    selectors = [make_selector(statistics), make_selector(statistics, choose=native)]
    params = sparse(method=method, lambda_=lambda_, seed=5)
    expected, actual = (selector.select(params, make_local(3)) for selector in selectors)
    assert expected is not None and actual is not None
    assert [kept.tolist() for kept in actual.neurons] == [kept.tolist() for kept in expected.neurons]
    assert actual.global_overlap == expected.global_overlap


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_values_without_a_rank_are_refused_in_the_same_words(native: NeuronChooser, value: float) -> None:
    values = np.ones((3, 40), np.float32)
    values[1, 39] = values[2, 0] = value
    with pytest.raises(UnrankableError, match=r"layer\(s\) 1, 2 contain NaN or infinity"):
        native(values, None, [0.5] * 3, [1, 0, 2], None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_scores": np.ones((2, 4))}, "expected float32 statistics, got float64"),
        ({"budgets": [1]}, r"expected 2 budgets in \[0, 4\], got \[1\]"),
        ({"budgets": [1, 5]}, r"expected 2 budgets in \[0, 4\], got \[1, 5\]"),
        ({"budgets": [-1, 1]}, r"expected 2 budgets in \[0, 4\], got \[-1, 1\]"),
        ({"budgets": [1, 1 << 40]}, r"expected 2 budgets in \[0, 4\]"),
    ],
)
def test_what_cannot_be_is_refused_in_the_same_words(
    native: NeuronChooser, changes: dict[str, Any], message: str
) -> None:
    question = {"prompt_scores": np.ones((2, 4), np.float32), "model_ranks": None, "reference": None}
    for chooser in (native, choose_neurons):
        with pytest.raises(ValueError, match=message):
            chooser(**{**question, "lambdas": [0.5, 0.5], "budgets": [1, 1], **changes})


def test_arrays_that_are_not_contiguous_are_chosen_from_too(native: NeuronChooser) -> None:
    values = np.random.default_rng(0).random((40, 3), dtype=np.float32).T
    question = (values, None, [0.5] * 3, [20] * 3, None)
    assert_same(native(*question), choose_neurons(*question))


MODEL_RANKS = np.tile(np.arange(4, dtype=np.int32), (2, 1))
WEIGHTS = np.ones((2, 2), np.int64)
QUESTION: dict[str, Any] = {
    "values": np.ones((2, 4), np.float32),
    "model_ranks": MODEL_RANKS,
    "weights": WEIGHTS,
    "budgets": [1, 1],
    "reference": None,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": None, "model_ranks": None}, "nothing to choose by"),
        ({"weights": np.ones((2, 3), np.int64)}, "two weights"),
        ({"weights": -WEIGHTS}, "a weight is out of range"),
        ({"weights": WEIGHTS << 40}, "a weight is out of range"),
        ({"model_ranks": MODEL_RANKS + 1}, "a rank of the model lies outside"),
        ({"model_ranks": MODEL_RANKS - 1}, "a rank of the model lies outside"),
        ({"model_ranks": MODEL_RANKS[:, :3].copy()}, "the same shape"),
        ({"reference": MODEL_RANKS[:1]}, "the same shape"),
        ({"values": np.ones((2, 0), np.float32), "model_ranks": None}, "no such number of neurons"),
    ],
)
def test_the_extension_takes_only_what_fits(harness: NativeHarness, changes: dict[str, Any], message: str) -> None:
    model: NativeModel = harness.runner._open()
    assert model.choose_neurons(**QUESTION) is not None
    with pytest.raises(ValueError, match=message):
        model.choose_neurons(**{**QUESTION, **changes})


def test_a_closed_runner_chooses_nothing(tmp_path: Path) -> None:
    runner = NativeHarness(make_image(open_prepared(save_tiny_model(tmp_path / "llama", "llama")), "int4")).runner
    chooser = runner.choose_neurons
    assert isinstance(chooser, NativeChooser)
    runner.close()
    with pytest.raises(EngineFailureError, match="closed"):
        chooser(np.ones((1, 2), np.float32), None, [0.5], [1], None)
