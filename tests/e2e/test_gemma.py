"""Gemma 3 270M from pull to native image. Opt-in by $GLASS_TEST_GEMMA: the suite does not download 240 MB."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import CacheConfig
from glass_core.offline.pull.puller import pull
from glass_core.runners.base import StepRow
from glass_core.runners.native.checkpoint_image import open_or_make_image
from glass_core.runners.native.runner import NativeRunner, kv_block_bytes
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.text import TextProcessor, load_text_processor

pytestmark = pytest.mark.skipif("GLASS_TEST_GEMMA" not in os.environ, reason="set GLASS_TEST_GEMMA=1 to run it")
BLOCK_SIZE, NUM_BLOCKS = 16, 8


@pytest.fixture(scope="module")
def folder() -> Path:
    return pull("gemma3-270m", name=None, force=False)


@pytest.fixture(scope="module")
def text(folder: Path) -> TextProcessor:
    return load_text_processor(folder)


def test_tokens_are_those_of_transformers(text: TextProcessor) -> None:
    assert text.encode_prompt("Question: What is the capital of France?\nAnswer:") == [
        *(2, 14977, 236787, 2900, 563, 506, 5279, 529, 7001, 236881, 107, 7925, 236787)
    ]
    source = "def add(a, b):\n    return a\n\n\n"
    assert text.decode(text.encode(source)) == source
    assert not text.has_chat_template


@torch.inference_mode()
def test_native_image_continues_as_the_float32_model_does(folder: Path, text: TextProcessor) -> None:
    tokens = text.encode_prompt(
        "The capital of France is Paris. The capital of Japan is Tokyo. The capital of Italy is"
    )
    model = TorchModel.load(folder, dtype=torch.float32, device="cpu")
    positions = torch.arange(len(tokens))
    hidden = model.forward(torch.tensor(tokens), positions, attention=SequenceCache(model.spec), ffn=model.dense_ffn)
    expected = torch.log_softmax(model.logits(hidden), dim=-1)
    header = open_or_make_image(open_prepared(folder).model_dir, "int8")
    cache = CacheConfig(BLOCK_SIZE, NUM_BLOCKS * kv_block_bytes(header.spec, BLOCK_SIZE, "bf16"))
    row = StepRow("gemma", tuple(tokens), 0, tuple(range(NUM_BLOCKS)))
    logits, _ = NativeRunner(header, cache, num_threads=2).score(row, len(tokens))
    actual = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    assert text.decode([int(np.argmax(logits[-1]))]) == " Rome"
    assert float((expected.exp() * (expected - actual)).sum(-1).mean()) < 0.02
