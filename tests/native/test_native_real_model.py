"""The default model in its own 4-bit weights: answers, and how far 8-bit activations move the predictions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import CacheConfig
from glass_core.runners.base import StepBatch, StepRow
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.runner import NativeRunner
from glass_core.runners.native.types import Floats
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.text import TextProcessor, load_text_processor
from tests.native.harness import RecordingModel
from tests.parity.harness import greedy

pytest.importorskip("glass_core.runners.native._native")
pytestmark = pytest.mark.model

BLOCKS = tuple(range(20))
QUESTION = "Explain why the sky is blue."


@pytest.fixture(scope="module", params=["int4", "int8"])
def runner(
    request: pytest.FixtureRequest, default_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> NativeRunner:
    folder = tmp_path_factory.mktemp("model")
    for path in default_model.iterdir():
        if path.suffix != ".img":
            (folder / path.name).symlink_to(path)
    header = make_image(open_prepared(folder), request.param)
    return NativeRunner(header, CacheConfig(kv_cache_bytes=32 << 20), num_threads=2)


@pytest.fixture(scope="module")
def text(default_model: Path) -> TextProcessor:
    return load_text_processor(default_model)


def chat(text: TextProcessor, question: str) -> list[int]:
    return text.encode(text.render_chat([{"role": "user", "content": question}]))


def generate(runner: NativeRunner, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        start = 0 if len(tokens) == len(prompt) else len(tokens) - 1
        row = StepRow("answer", tuple(tokens[start:]), start, BLOCKS, sample=greedy(tokens))
        (result,) = runner.execute(StepBatch((row,))).rows
        assert result.token_id is not None
        tokens.append(result.token_id)
    return tokens[len(prompt) :]


def test_it_knows_the_capital_of_france(runner: NativeRunner, text: TextProcessor) -> None:
    tokens = generate(runner, chat(text, "What is the capital of France?"), 8)
    answer = text.detokenizer([])
    assert "".join(map(answer.push, tokens[:7])) + answer.flush() == "The capital of France is Paris."
    assert tokens[7] in text.stop_token_ids


@torch.inference_mode()
def test_predictions_stay_close_to_float32(runner: NativeRunner, text: TextProcessor, default_model: Path) -> None:
    prompt = chat(text, QUESTION)
    answer = generate(runner, prompt, 64)
    model = TorchModel.load(default_model, dtype=torch.float32, device="cpu")
    tokens = torch.tensor(prompt + answer)
    hidden = model.forward(tokens, torch.arange(len(tokens)), attention=SequenceCache(model.spec), ffn=model.dense_ffn)
    expected = torch.log_softmax(model.logits(hidden[len(prompt) : -1]), dim=-1)
    actual = torch.log_softmax(torch.from_numpy(teacher_forced(runner, prompt, answer)), dim=-1)
    kl = (expected.exp() * (expected - actual)).sum(dim=-1)
    assert float(kl.mean()) < 0.0065
    assert float((actual.argmax(dim=-1) == expected.argmax(dim=-1)).float().mean()) > 0.93


def teacher_forced(runner: NativeRunner, prompt: list[int], answer: list[int]) -> Floats:
    """Logits after each answer token but the last, (n, vocab)."""
    recording = RecordingModel(runner._open())
    original, runner._model = runner._model, recording
    logits = []
    calls = [prompt, *([token] for token in answer[:-1])]
    start = 0
    for tokens in calls:
        runner.execute(StepBatch((StepRow("forced", tuple(tokens), start, BLOCKS, sample=greedy()),)))
        logits.append(recording.last_logits)
        start += len(tokens)
    runner._model = original
    return np.concatenate(logits[1:])
