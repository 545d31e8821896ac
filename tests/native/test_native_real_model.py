"""The default model in 4- and 8-bit weights: answers, and how far 8-bit activations move the predictions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glass_core.api import SamplingParams
from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import CacheConfig
from glass_core.offline.divergence import token_kl
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.longform import run_dense
from glass_core.offline.generation import generate, lay_out
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.runner import NativeRunner
from glass_core.runners.native.scoring import NativeScorer
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.text import TextProcessor, load_text_processor

pytest.importorskip("glass_core.runners.native._native")
pytestmark = pytest.mark.model

QUESTIONS = ("Explain why the sky is blue.", "Write a short poem about the sea.", "How do I boil an egg?")


@pytest.fixture(scope="module", params=["int4", "int8"])
def header(
    request: pytest.FixtureRequest, default_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> ImageHeader:
    folder = tmp_path_factory.mktemp("model")
    for path in default_model.iterdir():
        if path.suffix != ".img":
            (folder / path.name).symlink_to(path)
    return make_image(open_prepared(folder), request.param)


@pytest.fixture(scope="module")
def runner(header: ImageHeader) -> Iterator[NativeRunner]:
    runner = NativeRunner(header, CacheConfig(kv_cache_bytes=32 << 20), num_threads=2)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def text(default_model: Path) -> TextProcessor:
    return load_text_processor(default_model)


def answer(runner: NativeRunner, text: TextProcessor, question: str, num_tokens: int) -> Answer:
    """The runner's own dense, greedy answer."""
    prompt = tuple(text.encode(text.render_chat([{"role": "user", "content": question}])))
    sampling = SamplingParams(max_tokens=num_tokens, seed=0, temperature=0.0, stop_token_ids=text.stop_token_ids)
    (tokens,) = generate(runner, lay_out([prompt], [sampling]))
    return Answer(prompt, tokens)


def test_it_knows_the_capital_of_japan(runner: NativeRunner, text: TextProcessor) -> None:
    tokens = answer(runner, text, "What is the capital of Japan?", 8).token_ids
    detokenizer = text.detokenizer([])
    assert "".join(map(detokenizer.push, tokens[:7])) + detokenizer.flush() == "The capital of Japan is Tokyo."
    assert tokens[7] in text.stop_token_ids


def test_predictions_stay_close_to_float32(
    header: ImageHeader, runner: NativeRunner, text: TextProcessor, default_model: Path
) -> None:
    model = TorchModel.load(default_model, dtype=torch.float32, device="cpu")
    expected, actual = [], []
    with NativeScorer(header, max_tokens=256, num_threads=2) as scorer:
        for question in QUESTIONS:
            found = answer(runner, text, question, 64)
            expected.append(run_dense(model, found).log_probs)
            scorer.read_prompt(found.prompt)
            logits = torch.from_numpy(scorer.force(found.token_ids[:-1], None))
            actual.append(torch.log_softmax(logits, dim=-1))
    reference, other = torch.cat(expected), torch.cat(actual)
    assert len(reference) > 100
    assert float(token_kl(reference, other).mean()) < 0.0065
    assert float((other.argmax(dim=-1) == reference.argmax(dim=-1)).float().mean()) > 0.93  # some 180 tokens: noisy
