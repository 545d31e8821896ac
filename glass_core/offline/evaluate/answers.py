"""Reference answers: what the dense model itself says to each prompt, sampled once and shared by all conditions."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glass_core.api import SamplingParams
from glass_core.offline.generation import cache_for, generate, lay_out
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.text import TextProcessor

TEMPERATURE, TOP_P = 0.7, 0.95
# answers drawn together: bounds the KV memory, and is part of the protocol (a batch's rounding depends on its size)
_BATCH_SIZE = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A rendered prompt and the dense model's answer to it, a final stop token included."""

    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]


def max_steps(num_prompts: int, max_new_tokens: int) -> int:
    """Decode steps that sampling takes at most."""
    return -(-num_prompts // _BATCH_SIZE) * max_new_tokens


def encode_instruction(text: TextProcessor, instruction: str) -> tuple[int, ...]:
    """The instruction as a user message in the chat template; without one, as `Question: …` (a base model)."""
    if text.has_chat_template:
        return tuple(text.encode(text.render_chat([{"role": "user", "content": instruction}])))
    return tuple(text.encode_prompt(f"Question: {instruction}\nAnswer:"))


def sample_answers(
    model: TorchModel,
    text: TextProcessor,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    seed: int,
    on_step: Callable[[], None],
) -> list[Answer]:
    """Dense answers at T 0.7, top-p 0.95; the draw of prompt i depends on (seed, i) alone."""
    answers: list[Answer] = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        batch = prompts[start : start + _BATCH_SIZE]
        sampling = [_sampling(text, max_new_tokens, seed, start + offset) for offset in range(len(batch))]
        longest = max(len(prompt) for prompt in batch) + max_new_tokens
        cache = cache_for(
            model.spec, num_sequences=len(batch), num_tokens=longest, bytes_per_value=model.dtype.itemsize
        )
        generated = generate(TorchRunner(model, cache), lay_out(batch, sampling), on_step)
        answers += [Answer(prompt, tokens) for prompt, tokens in zip(batch, generated, strict=True)]
    return answers


def _sampling(text: TextProcessor, max_new_tokens: int, seed: int, index: int) -> SamplingParams:
    digest = hashlib.sha256(json.dumps([seed, index]).encode()).digest()
    return SamplingParams(
        max_tokens=max_new_tokens,
        seed=int.from_bytes(digest[:8], "big"),
        temperature=TEMPERATURE,
        top_p=TOP_P,
        stop_token_ids=text.stop_token_ids,
    )
