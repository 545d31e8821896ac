"""`glass eval oracle`: sets of neurons compared with the answer's own, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glass_core.api import SparsityParams
from glass_core.offline.cli import main
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.longform import run_dense
from glass_core.offline.evaluate.overlap import AnswerOracle, refined_masks
from glass_core.offline.evaluate.subjects import TorchSubject, model_selector
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.artifact import read_artifact

ANSWER = Answer(prompt=(1, 20, 30, 40, 50), token_ids=(60, 70, 80, 90, 100, 110))


def test_result_table_and_plot(
    model_dir: Path, artifact: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    flags = ["--prompts", str(prompts), "--max-new-tokens", "12", "--artifact", str(artifact), "--json", str(output)]
    sweep = ["--methods", "random,griffin,oracle", "--profiles", "sensitivity", "--sparsities", "0.5"]
    assert main(["eval", "oracle", str(model_dir), *flags, *sweep, "--refine", "off,on"]) == 0
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    rows = {"refined" if row["refine"] else row["method"]: row for row in result["rows"]}
    assert list(rows) == ["random", "griffin", "oracle", "refined"]
    assert rows["oracle"]["jaccard"] == 1.0
    assert rows["oracle"]["jaccard_interval"] == [1.0, 1.0]
    assert rows["random"]["jaccard"] < rows["refined"]["jaccard"] < 1.0
    assert rows["random"]["token_jaccard"] < rows["refined"]["token_jaccard"]
    assert all(len(row["layers"]) == 3 for row in result["rows"])
    assert np.mean([layer["jaccard"] for layer in rows["griffin"]["layers"]]) == pytest.approx(
        rows["griffin"]["jaccard"]
    )
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "griffin (sensitivity) at 0.5" in capsys.readouterr().out
    assert main(["eval", "oracle", str(model_dir), *flags, *sweep[:4], "--sparsities", "0"]) == 1
    assert "dense keeps every neuron" in capsys.readouterr().err


def test_jaccards_of_fixed_sets_equal_their_definition(model_dir: Path) -> None:
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    selector, dense = model_selector(model, None), run_dense(model, ANSWER)
    params = SparsityParams(0.75, method="griffin")
    found = AnswerOracle(model, selector, dense).overlap(params)
    mine = selector.select(params, dense.prompt_statistics)
    best = selector.select(SparsityParams(0.75, method="oracle"), dense.answer_statistics)
    assert mine is not None
    assert best is not None
    for layer, (left, right) in enumerate(zip(mine.neurons, best.neurons, strict=True)):
        shared, joined = set(left) & set(right), set(left) | set(right)
        assert found.jaccard[layer] == len(shared) / len(joined)
    kept = set(mine.neurons[0].tolist())
    expected = [len(kept & top) / len(kept | top) for top in first_layer_best(model, len(kept))]
    assert found.token_jaccard[0] == pytest.approx(np.mean(expected))


def first_layer_best(model: TorchModel, count: int) -> list[set[int]]:
    """Each scored token's `count` best neurons of the first layer by |z|, from one pass over prompt and answer."""
    from glass_core.runners.torch_runner.attention import SequenceCache

    seen: list[torch.Tensor] = []

    def ffn(layer: int, x: torch.Tensor) -> torch.Tensor:
        z = model.ffn_activation(layer, x)
        seen.append(z)
        return model.ffn_output(layer, z)

    tokens = torch.tensor(ANSWER.prompt + ANSWER.token_ids[:-1])
    with torch.no_grad():
        model.forward(tokens, torch.arange(len(tokens)), attention=SequenceCache(model.spec), ffn=ffn)
    return [set(row.abs().topk(count).indices.tolist()) for row in seen[0][len(ANSWER.prompt) :]]


def test_refined_masks_are_what_the_tokens_read(model_dir: Path, artifact: Path) -> None:
    """Of answers side by side those of each alone, and as many neurons as the reads say."""
    model, statistics = TorchModel.load(model_dir, dtype=torch.float32, device="cpu"), read_artifact(artifact)
    params = SparsityParams(0.4, profile="sensitivity", refine=True)
    dense = [run_dense(model, one) for one in (ANSWER, Answer((5, 6), (7, 8, 9)))]
    subject = TorchSubject(model, statistics)
    plan = subject.selector.select(params, None)
    assert plan is not None
    together, alone = refined_masks(model, dense, plan), [refined_masks(model, [one], plan)[0] for one in dense]
    shape = (model.spec.num_layers, model.spec.intermediate_size)
    assert [mask.shape for mask in together] == [(5, *shape), (2, *shape)]
    assert all(torch.equal(mine, own) for mine, own in zip(together, alone, strict=True))
    reads = [step.reads for step in subject.decode_refined([(params, dense[0])])]
    # what is not down is whole inputs, of gate and up: two columns of m weights each, the same for both
    hidden, neurons = model.spec.hidden_size, model.spec.intermediate_size
    for mask, (share,) in zip(together[0], reads, strict=True):
        rest = 3 * share * mask.numel() * hidden - int(mask.sum()) * hidden
        assert 0 < rest < 2 * mask.numel() * hidden
        assert rest / (2 * neurons) == pytest.approx(round(rest / (2 * neurons)), abs=1e-3)
