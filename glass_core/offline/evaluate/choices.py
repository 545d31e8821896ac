"""Multiple-choice tasks from local files: accuracy by likelihood under a condition, with intervals over questions."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_core.errors import ConfigurationError
from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.task_scoring import TaskModel


@dataclass(frozen=True, slots=True)
class Question:
    """`answer` is the index of the right one of `choices`, each appended to the context as it stands."""

    context: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: Path, *, limit: int | None = None) -> list[Question]:
    """JSON lines of {"context", "choices", "answer"}. Raises ConfigurationError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as a task file ({error})") from error
    found = [_question(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()][:limit]
    if not found:
        raise ConfigurationError(f"{path}: no question")
    return found


def _question(path: Path, number: int, line: str) -> Question:
    try:
        entry = json.loads(line)
        context, choices, answer = entry["context"], tuple(entry["choices"]), entry["answer"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{path}, line {number}: expected context, choices and answer ({error!r})") from error
    texts = all(isinstance(text, str) and text for text in (context, *choices))
    if not texts or len(choices) < 2 or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ConfigurationError(
            f"{path}, line {number}: expected a text, at least two choices and the index of the right one, got "
            f"{line[:80]}"
        )
    return Question(context, choices, answer)


def accuracy(model: TaskModel, questions: Iterable[Question], seed: int) -> dict[str, Any]:
    """`accuracy` by total log-probability, `accuracy_norm` by that per byte of the choice, and their intervals."""
    right, right_norm = [], []
    for question in questions:
        scores = [model.likelihood(question.context, choice).log_prob for choice in question.choices]
        per_byte = [score / len(choice.encode()) for score, choice in zip(scores, question.choices, strict=True)]
        right.append(float(_best(scores) == question.answer))
        right_norm.append(float(_best(per_byte) == question.answer))
    bootstrap, counts = Bootstrap.over(len(right), seed), [1] * len(right)
    found: dict[str, Any] = {"num_questions": len(right)}
    for name, values in (("accuracy", right), ("accuracy_norm", right_norm)):
        found[name] = sum(values) / len(values)
        found[f"{name}_interval"] = bootstrap.interval(values, counts)
    return found


def _best(scores: Sequence[float]) -> int:
    """The first of the largest."""
    return max(range(len(scores)), key=scores.__getitem__)
