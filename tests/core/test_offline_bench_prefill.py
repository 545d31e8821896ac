"""`glass bench prefill`: chunks like the engine's, statistics of the whole prompt, the cost of choosing neurons."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from glass_core.config import EngineConfig
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.prefill import PrefillSettings, prompt_timings, run_prompt
from glass_core.offline.bench.session import Session
from glass_core.offline.cli import main
from glass_core.offline.generation import cache_for
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.selection import PlanSelector


def test_result_file(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "prefill.json"
    flags = ["--prompt-tokens", "5,9", "--chunk-tokens", "4", "--repeats", "2", "--dtype", "float32"]
    assert main(["bench", "prefill", str(model_dir), *flags, "--json", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["conditions"]["chunk_tokens"] == 4
    assert [row["prompt_tokens"] for row in result["rows"]] == [5, 9]
    for row in result["rows"]:
        assert (row["sparsity"], row["effective_sparsity"]) == (0.5, 0.5)
        assert row["tokens_per_second_min"] <= row["tokens_per_second"] <= row["tokens_per_second_max"]
        assert row["view_seconds"] >= 0 and row["selection_seconds"] > 0
        extra = row["selection_seconds"] + row["view_seconds"]
        assert row["selection_share"] == pytest.approx(extra / (row["seconds"] + extra))
    assert "selection" in capsys.readouterr().out


def test_a_chunked_prompt_ends_like_a_whole_one(model_dir: Path) -> None:
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    runner = TorchRunner(model, cache_for(model.spec, num_sequences=1, num_tokens=16, bytes_per_value=4))
    selector = PlanSelector(
        num_layers=3, intermediate_size=88, statistics=None, magnitudes=lambda: np.ones((3, 88), np.float32)
    )
    session = Session(EngineConfig(Path(), "tiny", runner="torch_runner", dtype="float32"), runner, selector, None)
    results = []
    for chunk in (10, 3):
        settings = PrefillSettings(prompt_tokens=(10,), chunk_tokens=chunk)
        (timing,) = prompt_timings(session, settings)
        results.append(run_prompt(session, settings, timing.prompt))
    whole, chunked = results
    assert whole.token_id == chunked.token_id
    assert whole.statistics is not None and chunked.statistics is not None
    assert whole.statistics.num_tokens == chunked.statistics.num_tokens == 10
    np.testing.assert_allclose(whole.statistics.sum_abs, chunked.statistics.sum_abs, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"prompt_tokens": ()}, "prompt_tokens must be at least 1"),
        ({"sparsity": 0.0}, "sparsity must be positive"),
    ],
)
def test_bad_settings_name_the_field(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PrefillSettings(**wrong)  # type: ignore[arg-type]


def test_flags_are_checked(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "prefill", str(model_dir), "--prompt-tokens", "5,x"]) == 1
    assert "--prompt-tokens must be whole numbers" in capsys.readouterr().err
    assert main(["bench", "prefill", str(model_dir), "--prompt-tokens", "0"]) == 1
    assert "--prompt-tokens must be at least 1" in capsys.readouterr().err
    assert main(["bench", "prefill"]) == 1
    assert "give either MODEL or --random SHAPE" in capsys.readouterr().err
    assert main(["bench", "prefill", "--random", "llama-1b", "--dtype", "float32"]) == 1
    assert "--random models run on the native runner" in capsys.readouterr().err
