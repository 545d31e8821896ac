"""What the engine refuses before queueing it, and how it describes itself."""

from dataclasses import replace

import pytest

from glass_core.api import SparsityParams
from glass_core.engine.engine import Engine
from glass_core.errors import (
    ConfigurationError,
    ContextLengthError,
    InvalidRequestError,
    MissingStatisticsError,
)
from tests.core.engine_builders import (
    GRIFFIN,
    CountingSelector,
    engine_config,
    make_engine,
    make_request,
    run_to_end,
    tokens_of,
)
from tests.fakes_runner import FakeRunner


def test_a_prompt_beyond_the_context_is_refused_with_the_three_numbers() -> None:
    engine = make_engine(FakeRunner(), max_model_len=20)
    with pytest.raises(ContextLengthError, match=r"holds 20 .* has 15 .* for 6 more") as caught:
        engine.check(make_request(prompt=range(15), max_tokens=6))
    assert caught.value.param == "max_tokens"
    engine.check(make_request(prompt=range(15), max_tokens=5))


def test_a_request_larger_than_the_kv_pool_is_refused_and_the_largest_that_fits_is_served() -> None:
    engine = make_engine(FakeRunner(num_kv_blocks=3), max_model_len=64)
    with pytest.raises(InvalidRequestError, match="KV cache holds 12 tokens") as caught:
        engine.add(make_request(prompt=range(8), max_tokens=6))
    assert caught.value.param == "max_tokens"
    engine.add(make_request(prompt=range(8), max_tokens=5))
    assert len(tokens_of(run_to_end(engine))) == 5


def test_views_larger_than_their_budget_are_refused() -> None:
    engine = make_engine(FakeRunner(), view_cache_bytes=79)
    with pytest.raises(InvalidRequestError, match="need 80 bytes") as caught:
        engine.add(make_request(sparsity=GRIFFIN))
    assert caught.value.param == "glass_sparsity"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [((), "prompt is empty"), ((1, 32), "token id 32 is not in the vocabulary"), ((-1,), "token id -1")],
)
def test_a_bad_prompt_is_refused(prompt: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        make_engine(FakeRunner()).check(make_request(prompt=prompt))
    assert caught.value.param == "prompt"


def test_other_bad_requests_are_refused() -> None:
    engine = make_engine(FakeRunner())
    request = make_request()
    with pytest.raises(InvalidRequestError, match="max_tokens must be at least 1, got 0"):
        engine.add(make_request(max_tokens=0))
    with pytest.raises(InvalidRequestError, match="stop_token_ids: token id 99"):
        engine.add(replace(request, sampling=replace(request.sampling, stop_token_ids=(99,))))
    with pytest.raises(MissingStatisticsError, match="i_glass"):
        engine.add(make_request(sparsity=SparsityParams(sparsity=0.5, method="i_glass")))
    engine.add(request)
    with pytest.raises(InvalidRequestError, match="id 'r' is in use"):
        engine.add(request)


def test_info_describes_the_loaded_engine() -> None:
    info = make_engine(FakeRunner()).info
    assert (info.model_name, info.fingerprint, info.runner) == ("fake", "fake-fingerprint", "fake")
    assert (info.dtype, info.device, info.num_parameters) == ("float32", "cpu", 1234)
    assert (info.max_model_len, info.vocab_size, info.num_layers, info.intermediate_size) == (64, 32, 2, 8)
    assert "griffin" in info.methods
    assert "i_glass" in info.unavailable_methods
    assert info.artifact is None
    assert "no global-statistics artifact" in info.notes[0]
    runner = FakeRunner()
    with_artifact = Engine(runner, CountingSelector(runner), engine_config(runner), artifact="a.safetensors").info
    assert with_artifact.artifact == "a.safetensors"
    assert [note.split()[0] for note in with_artifact.notes] == ["glass_sparsity"]  # no expected KL measured


def test_without_a_configured_context_the_kv_pool_caps_it_and_a_note_says_so() -> None:
    info = make_engine(FakeRunner(num_kv_blocks=3)).info
    assert info.max_model_len == 12
    assert "12 of the model's 64 positions" in info.notes[-1]


@pytest.mark.parametrize("length", [0, 65])
def test_a_context_out_of_the_models_range_is_refused(length: int) -> None:
    with pytest.raises(ConfigurationError, match=f"between 1 and the model's 64, got {length}"):
        make_engine(FakeRunner(), max_model_len=length)


def test_a_kv_pool_without_a_block_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="kv_cache_bytes"):
        make_engine(FakeRunner(num_kv_blocks=0))
