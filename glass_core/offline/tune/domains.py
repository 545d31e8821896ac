"""The text that is tuned on: the model's own, of several kinds, begun with a few words of what a user may ask.

The words open the user's turn of the chat template; the model goes on as the user, then answers, both at temperature 1.
A model without a template goes on with a document that begins with the words. Draws depend on (seed, domain, index).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glass_core.api import SamplingParams
from glass_core.offline.calibrate.corpus import bos_token_id, chat_frame, draw_seed, has_chat_frame
from glass_core.offline.generation import generate, lay_out
from glass_core.offline.progress import Progress
from glass_core.offline.tune.settings import TextSettings
from glass_core.runners.base import Runner
from glass_core.text import TextProcessor

_MIN_MESSAGE_TOKENS = 2
_MIN_ANSWER_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of text and its first words."""

    name: str
    opening: str


DOMAINS = (
    Domain("chat", "Hi"),
    Domain("questions", "What is"),
    Domain("explanations", "Explain how"),
    Domain("stories", "Write a short story about"),
    Domain("code", "Write a Python function that"),
    Domain("lists", "List"),
)


@dataclass(frozen=True, slots=True)
class TuningText:
    """A prompt, which a server reads densely, and the answer whose tokens it decodes under thresholds."""

    domain: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TuningTexts:
    """Texts by what they are for; each part holds equally many of every domain, domain after domain."""

    learning: tuple[TuningText, ...]
    stopping: tuple[TuningText, ...]
    deciding: tuple[TuningText, ...]


def split_texts(texts: Sequence[TuningText], settings: TextSettings) -> TuningTexts:
    """The three parts of all texts, which come domain after domain."""
    size, first, second = settings.num_per_domain, settings.num_learning, settings.num_learning + settings.num_stopping
    groups = [texts[start : start + size] for start in range(0, len(texts), size)]

    def part(start: int, end: int) -> tuple[TuningText, ...]:
        return tuple(text for group in groups for text in group[start:end])

    return TuningTexts(part(0, first), part(first, second), part(second, size))


def max_prompt_tokens(text: TextProcessor, settings: TextSettings) -> int:
    """Tokens that the longest prompt and its answer take at most."""
    frame = sum(len(part) for part in chat_frame(text)) if has_chat_frame(text) else 1
    opening = max(len(text.encode(domain.opening)) for domain in DOMAINS)
    return frame + opening + settings.message_length + settings.answer_length


def draw_texts(
    runner: Runner, text: TextProcessor, model_dir: Path, settings: TextSettings, progress: Progress
) -> list[TuningText]:
    """`num_per_domain` texts of every domain, domain after domain."""
    names = [domain.name for domain in DOMAINS for _ in range(settings.num_per_domain)]
    openings = [text.encode(domain.opening) for domain in DOMAINS for _ in range(settings.num_per_domain)]
    with progress.task("writing texts", settings.message_length + settings.answer_length) as advance:
        if has_chat_frame(text):
            before, after = chat_frame(text)
            begun = [(*before, *opening) for opening in openings]
            sampling = _sampling(settings, text, "message", settings.message_length, len(names))
            messages = generate(runner, lay_out(begun, sampling), advance)
            prompts = [(*start, *_body(rest, text), *after) for start, rest in zip(begun, messages, strict=True)]
        else:
            prompts = [(bos_token_id(model_dir), *opening) for opening in openings]
        answers = generate(
            runner, lay_out(prompts, _sampling(settings, text, "answer", settings.answer_length, len(names))), advance
        )
    return [TuningText(*parts) for parts in zip(names, prompts, answers, strict=True)]


def _body(tokens: tuple[int, ...], text: TextProcessor) -> tuple[int, ...]:
    return tokens[:-1] if tokens[-1] in text.stop_token_ids else tokens


def _sampling(
    settings: TextSettings, text: TextProcessor, turn: str, max_tokens: int, num_texts: int
) -> list[SamplingParams]:
    """Temperature 1 until the model ends its turn."""
    smallest = _MIN_MESSAGE_TOKENS if turn == "message" else _MIN_ANSWER_TOKENS
    return [
        SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min(smallest, max_tokens),
            seed=draw_seed(settings.seed, index, f"tune {turn}"),
            stop_token_ids=text.stop_token_ids,
        )
        for index in range(num_texts)
    ]
