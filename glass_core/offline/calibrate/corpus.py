"""The calibration corpus: text the dense model writes itself (NPS, arXiv 2508.14302), or windows of a text file.

`null`: from BOS alone, temperature 1, no filters, stop tokens ignored (the model goes on with its next document).
`chat`: from the chat template's opening of a user turn; the model writes the user's message, then its own answer under
the template, both at temperature 1. The fixed template prefix is part of the sequence, but statistics skip it.
Draws depend on (seed, sequence, turn) alone.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glass_core.api import SamplingParams
from glass_core.checkpoint.json_file import read_json_object
from glass_core.errors import ConfigurationError
from glass_core.offline.calibrate.settings import CHAT_SOURCE, NULL_SOURCE, CalibrationSettings
from glass_core.offline.generation import generate, lay_out
from glass_core.runners.base import Runner
from glass_core.text import TextProcessor

# an empty turn says nothing about the neurons
_MIN_TURN_TOKENS = 4
_MESSAGE_MARK = "GLASS-MESSAGE"


@dataclass(frozen=True, slots=True)
class CorpusSequence:
    """Token ids, and how many leading ones are fixed template that statistics must skip.

    `num_prompt` leading ones (BOS, or a chat's template and question) were given when the model wrote the last part.
    """

    token_ids: tuple[int, ...]
    num_skipped: int = 0
    num_prompt: int = 1

    @property
    def num_counted(self) -> int:
        return len(self.token_ids) - self.num_skipped

    @property
    def first_after_start(self) -> int:
        """The first counted position that is not position 0, whose activations are like no other's."""
        return max(self.num_skipped, 1)

    @property
    def first_decoded(self) -> int:
        """The first position that a server would run under a plan: after the prompt, and not position 0."""
        return max(self.num_prompt, 1)


def sampler_description(source: str) -> str:
    """How the corpus was drawn, for the manifest."""
    known = {
        NULL_SOURCE: "BOS alone, temperature 1, no filters, stop tokens ignored",
        CHAT_SOURCE: "chat template's user opening, user message and answer at temperature 1, no filters",
    }
    return known.get(source, "windows of the file at seeded positions")


def max_steps(settings: CalibrationSettings) -> int:
    """Decode steps that drawing the corpus takes at most."""
    turns = {NULL_SOURCE: settings.sequence_length, CHAT_SOURCE: settings.sequence_length * 3 // 2}
    return turns.get(settings.source, 1)


def make_corpus(
    runner: Runner, text: TextProcessor, model_dir: Path, settings: CalibrationSettings, on_step: Callable[[], None]
) -> list[CorpusSequence]:
    """All sequences of a run: those for statistics first, then the held-out ones."""
    if settings.source == NULL_SOURCE:
        return _null_corpus(runner, model_dir, settings, on_step)
    if settings.source == CHAT_SOURCE:
        return _chat_corpus(runner, text, settings, on_step)
    return _file_corpus(text, settings)


def bos_token_id(model_dir: Path) -> int:
    """The token a document starts with: `bos_token_id` of config.json, else the first stop token there.

    Raises ConfigurationError when the config names neither.
    """
    config = read_json_object(model_dir / "config.json")
    for key in ("bos_token_id", "eos_token_id"):
        value: Any = config.get(key)
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int) and not isinstance(first, bool):
            return first
    raise ConfigurationError(f"{model_dir / 'config.json'} names no bos_token_id to start from; use --source chat")


def chat_frame(text: TextProcessor) -> tuple[list[int], list[int]]:
    """Token ids before a user's message, and from its end to where the assistant begins to write.

    Raises ConfigurationError when the model has no chat template or it does not hold the message once, unchanged.
    """
    if not text.has_chat_template:
        raise ConfigurationError(f"the model has no chat template; use --source {NULL_SOURCE} or a text file")
    rendered = text.render_chat([{"role": "user", "content": _MESSAGE_MARK}], add_generation_prompt=True)
    parts = rendered.split(_MESSAGE_MARK)
    if len(parts) != 2:
        raise ConfigurationError(
            f"the chat template shows a message {len(parts) - 1} times; use --source {NULL_SOURCE}"
        )
    return text.encode(parts[0]), text.encode(parts[1])


def has_chat_frame(text: TextProcessor) -> bool:
    """Whether `chat_frame` has one to give."""
    try:
        chat_frame(text)
    except ConfigurationError:
        return False
    return True


def draw_seed(seed: int, index: int, turn: str) -> int:
    """The sampler's seed for one sequence's turn: unrelated for neighboring seeds and sequences."""
    digest = hashlib.sha256(json.dumps([seed, index, turn]).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _null_corpus(
    runner: Runner, model_dir: Path, settings: CalibrationSettings, on_step: Callable[[], None]
) -> list[CorpusSequence]:
    prompt = (bos_token_id(model_dir),)
    sampling = [
        SamplingParams(max_tokens=settings.sequence_length - 1, seed=draw_seed(settings.seed, index, "document"))
        for index in range(settings.total_sequences)
    ]
    answers = _write(runner, [prompt] * len(sampling), sampling, on_step)
    return [CorpusSequence(prompt + answer) for answer in answers]


def _chat_corpus(
    runner: Runner, text: TextProcessor, settings: CalibrationSettings, on_step: Callable[[], None]
) -> list[CorpusSequence]:
    before, after = chat_frame(text)
    budget = settings.sequence_length
    openings = [before] * settings.total_sequences
    limits = [budget // 2] * len(openings)
    messages = _write(runner, openings, _turn_sampling(settings, text, "message", limits), on_step)
    messages = [tokens[:-1] if tokens[-1] in text.stop_token_ids else tokens for tokens in messages]
    prompts = [[*before, *message, *after] for message in messages]
    limits = [max(budget - len(message) - len(after), 1) for message in messages]
    answers = _write(runner, prompts, _turn_sampling(settings, text, "answer", limits), on_step)
    return [
        CorpusSequence((*prompt, *answer), num_skipped=len(before), num_prompt=len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _turn_sampling(
    settings: CalibrationSettings, text: TextProcessor, turn: str, limits: Sequence[int]
) -> list[SamplingParams]:
    """Temperature 1 until the model ends its turn, at most `limits[index]` tokens."""
    return [
        SamplingParams(
            max_tokens=limit,
            min_tokens=min(_MIN_TURN_TOKENS, limit),
            seed=draw_seed(settings.seed, index, turn),
            stop_token_ids=text.stop_token_ids,
        )
        for index, limit in enumerate(limits)
    ]


def _write(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    sampling: Sequence[SamplingParams],
    on_step: Callable[[], None],
) -> list[tuple[int, ...]]:
    return generate(runner, lay_out(prompts, sampling), on_step)


def _file_corpus(text: TextProcessor, settings: CalibrationSettings) -> list[CorpusSequence]:
    """Distinct windows of the file in a seeded order, all equally long."""
    assert settings.file is not None
    token_ids = text.encode_prompt(settings.file.read_text(encoding="utf-8"))
    length, needed = settings.sequence_length, settings.total_sequences
    num_windows = len(token_ids) // length
    if num_windows < needed:
        raise ConfigurationError(
            f"{settings.file.name} holds {len(token_ids)} tokens; {needed} sequences of {length} need {needed * length}"
        )
    chosen = np.random.default_rng(settings.seed).permutation(num_windows)[:needed]
    return [CorpusSequence(tuple(token_ids[index * length : (index + 1) * length])) for index in chosen.tolist()]
