"""Prompts of a given length: the ends of conversations the dense model took part in.

A prompt-length sweep needs prompts that differ in nothing else. Instructions of different lengths are different tasks,
and padding is text no user writes; so each instruction stays the last turn, and what comes before it grows: the
instructions before it in the file, each with the dense model's own answer. Of that conversation the last N tokens are
the prompt, exactly. A very short one holds the end of the instruction only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glass_core.errors import ConfigurationError
from glass_core.text import TextProcessor


@dataclass(frozen=True, slots=True)
class Turn:
    """An instruction and the dense model's answer to it alone."""

    instruction: str
    answer: str


def conversation_prompts(text: TextProcessor, turns: Sequence[Turn], num_tokens: int) -> list[tuple[int, ...]]:
    """One prompt of exactly `num_tokens` tokens per turn, whose own answer is not in it.

    Raises ConfigurationError when all turns together are too short.
    """
    return [_prompt(text, turns, index, num_tokens) for index in range(len(turns))]


def _prompt(text: TextProcessor, turns: Sequence[Turn], index: int, num_tokens: int) -> tuple[int, ...]:
    before = [turns[index - distance] for distance in range(len(turns) - 1, 0, -1)]  # the file as a ring
    tokens: tuple[int, ...] = ()
    for count in range(len(turns)):
        tokens = _encode(text, before[len(before) - count :], turns[index].instruction)
        if len(tokens) >= num_tokens:
            return tokens[-num_tokens:]
    raise ConfigurationError(
        f"prompt_tokens {num_tokens}: {len(turns)} instructions with their answers make conversations of "
        f"{len(tokens)} tokens; use more prompts or longer answers"
    )


def _encode(text: TextProcessor, before: Sequence[Turn], instruction: str) -> tuple[int, ...]:
    """As `encode_instruction`, with turns before it."""
    if not text.has_chat_template:
        earlier = "".join(f"Question: {turn.instruction}\nAnswer:{turn.answer}\n\n" for turn in before)
        return tuple(text.encode_prompt(f"{earlier}Question: {instruction}\nAnswer:"))
    messages = [
        {"role": role, "content": content}
        for turn in before
        for role, content in (("user", turn.instruction), ("assistant", turn.answer))
    ]
    return tuple(text.encode(text.render_chat([*messages, {"role": "user", "content": instruction}])))
