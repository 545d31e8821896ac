"""One run of the long-form evaluation: sample the answers, score every condition, collect the result."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_core.api import SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.evaluate.answer_file import kept_answers
from glass_core.offline.evaluate.answers import (
    TEMPERATURE,
    TOP_P,
    Answer,
    encode_instruction,
    max_steps,
    sample_answers,
)
from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.condition_scores import chunks, score_conditions
from glass_core.offline.evaluate.conditions import Sweep
from glass_core.offline.evaluate.conversations import Turn, conversation_prompts
from glass_core.offline.evaluate.lengths import length_sweep
from glass_core.offline.evaluate.longform import run_dense
from glass_core.offline.evaluate.scores import ConditionScore, perplexity_of, total_nll
from glass_core.offline.evaluate.subjects import NativeSubject, Subject, TorchSubject
from glass_core.offline.progress import Progress
from glass_core.offline.provenance import commit, machine, versions
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.scoring import NativeScorer
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.text import TextProcessor

# all conditions of one subject
Column = list[ConditionScore]

PROTOCOL = (
    "long-form: the dense model samples an answer; every condition is teacher-forced on it with dense prompt KV; all "
    "answer tokens but the first are scored"
)


@dataclass(frozen=True, slots=True)
class LongformRun:
    """A loaded model, its artifact (with the file it came from), and what to evaluate.

    With `images`, the native runner is evaluated on each, and the model is the reference it is compared with. With an
    `answer_file`, the answers are read from there, or put there when there is none yet; those to prompts of N tokens
    from and to NAME-promptN. `answer_lengths`: of the answers' first so many tokens there is a report of its own.
    """

    model: TorchModel
    model_name: str
    text: TextProcessor
    artifact: tuple[GlobalStatistics, Path] | None
    sweep: Sweep
    max_new_tokens: int
    seed: int
    progress: Progress
    images: tuple[ImageHeader, ...] = ()
    num_threads: int | None = None
    answer_file: Path | None = None
    answer_lengths: tuple[int, ...] = ()
    prompt_lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 2:
            raise ConfigurationError(
                f"max_new_tokens must be at least 2 (the first answer token is not scored), got {self.max_new_tokens}"
            )
        if self.answer_lengths and not 2 <= min(self.answer_lengths) <= max(self.answer_lengths) == self.max_new_tokens:
            raise ConfigurationError(
                f"answer_lengths must lie between 2 and max_new_tokens = {self.max_new_tokens} and end with it, got "
                f"{self.answer_lengths}"
            )

    def execute(self, instructions: Sequence[str]) -> dict[str, Any]:
        """`bootstrap`, `dense` and `rows` of the result, and with prompt lengths `prompt_lengths`: the same of each.

        Checks every condition before anything slow starts.
        """
        reference = TorchSubject(self.model, self.statistics)
        wanted = self.sweep.conditions(reference.selector)
        answers = self._all_answers(instructions)
        result = self._evaluate(reference, wanted, answers)
        if self.prompt_lengths:
            turns = self._turns(instructions, answers)
            result["prompt_lengths"] = [
                {"prompt_tokens": length, **self._evaluate(reference, wanted, self._continued(turns, length))}
                for length in self.prompt_lengths
            ]
        return result

    def _evaluate(
        self, reference: TorchSubject, wanted: Sequence[SparsityParams], given: Sequence[Answer]
    ) -> dict[str, Any]:
        """`bootstrap`, `dense` and `rows` of these answers."""
        answers = _scorable(given)
        with ExitStack() as stack:
            subjects = [reference, *self.native_subjects(stack, answers)]
            scores = _empty_scores(subjects, wanted)
            nll = self._score_all(answers, subjects, scores)
        bootstrap = Bootstrap.over(len(answers), self.seed)
        num_tokens = [len(answer.token_ids) - 1 for answer in answers]
        return {
            "bootstrap": bootstrap.description(),
            "dense": {
                **perplexity_of(nll, num_tokens, bootstrap),
                "num_tokens": sum(num_tokens),
                "num_answers": len(answers),
            },
            "rows": [self._row(condition, bootstrap) for column in scores for condition in column],
        }

    def _row(self, condition: ConditionScore, bootstrap: Bootstrap) -> dict[str, Any]:
        found = [score.from_dense for score in condition.answers]
        return {**condition.row(bootstrap), **length_sweep(found, self.answer_lengths, bootstrap)}

    def _turns(self, instructions: Sequence[str], answers: Sequence[Answer]) -> list[Turn]:
        return [
            Turn(instruction, self.text.decode(answer.token_ids))
            for instruction, answer in zip(instructions, answers, strict=True)
        ]

    def _continued(self, turns: Sequence[Turn], length: int) -> list[Answer]:
        """Answers to conversations of exactly `length` tokens."""
        file = self.answer_file
        kept = None if file is None else file.with_stem(f"{file.stem}-prompt{length}")
        return self._answers(conversation_prompts(self.text, turns, length), kept)

    @property
    def statistics(self) -> GlobalStatistics | None:
        return None if self.artifact is None else self.artifact[0]

    def native_subjects(self, stack: ExitStack, answers: Sequence[Answer]) -> list[Subject]:
        """The native runner on every image, open as long as the stack."""
        longest = max(len(answer.prompt) + len(answer.token_ids) for answer in answers)
        scorers = [NativeScorer(image, max_tokens=longest, num_threads=self.num_threads) for image in self.images]
        return [NativeSubject.on(stack.enter_context(scorer), self.statistics) for scorer in scorers]

    def answers_to(self, instructions: Sequence[str]) -> list[Answer]:
        """The dense model's answers with something to score. Raises ConfigurationError when there is none."""
        return _scorable(self._all_answers(instructions))

    def _all_answers(self, instructions: Sequence[str]) -> list[Answer]:
        """One per instruction, empty ones included."""
        prompts = [encode_instruction(self.text, instruction) for instruction in instructions]
        return self._answers(prompts, self.answer_file)

    def _answers(self, prompts: Sequence[tuple[int, ...]], file: Path | None) -> list[Answer]:
        if file is None:
            return self._sample(prompts)
        return kept_answers(file, self._origin(prompts), lambda: self._sample(prompts))

    def _sample(self, prompts: Sequence[tuple[int, ...]]) -> list[Answer]:
        steps = max_steps(len(prompts), self.max_new_tokens)
        with self.progress.task("sampling dense answers", steps) as advance:
            return sample_answers(
                self.model, self.text, prompts, max_new_tokens=self.max_new_tokens, seed=self.seed, on_step=advance
            )

    def in_progress(self, answers: Sequence[Answer]) -> Iterator[Answer]:
        with self.progress.task("scoring answers", len(answers)) as advance:
            for answer in answers:
                yield answer
                advance()

    def _score_all(
        self, answers: Sequence[Answer], subjects: Sequence[Subject], columns: Sequence[Column]
    ) -> list[float]:
        """As `_score`, in as many parts as memory asks for."""
        nll: list[float] = []
        with self.progress.task("scoring answers", len(answers)) as advance:
            wanted = [condition.params for condition in columns[0]]
            for chunk in chunks(answers, wanted, self.model.spec.vocab_size):
                nll += self._score(chunk, subjects, columns)
                for _ in chunk:
                    advance()
        return nll

    def _score(self, answers: Sequence[Answer], subjects: Sequence[Subject], columns: Sequence[Column]) -> list[float]:
        """Add these answers' scores to every condition of every subject; the dense model's own summed nll of each."""
        dense = [run_dense(self.model, answer) for answer in answers]
        wanted = [condition.params for condition in columns[0]]
        for column, scores in zip(columns, score_conditions(subjects, wanted, dense), strict=True):
            for condition in column:
                condition.answers += scores[condition.params]
        return [total_nll(one.log_probs, one.targets) for one in dense]

    def conditions(self, prompts: str, command: str) -> dict[str, Any]:
        """What the result depends on; `prompts` names the prompt file."""
        statistics, path = (None, None) if self.artifact is None else self.artifact
        return {
            "protocol": PROTOCOL,
            "command": command,
            "commit": commit(),
            "model": self.model_name,
            "prompts": prompts,
            **self._sampling(),
            "answer_lengths": list(self.answer_lengths),
            "prompt_tokens": list(self.prompt_lengths),
            "device": str(self.model.device),
            "images": [{"format": image.format, "exact": image.exact} for image in self.images],
            "artifact": None if path is None else path.name,
            "artifact_corpus": None if statistics is None else dict(statistics.manifest.corpus),
            "machine": machine(),
            "versions": versions(),
        }

    def _sampling(self) -> dict[str, Any]:
        return {
            "fingerprint": self.model.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_new_tokens": self.max_new_tokens,
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "seed": self.seed,
        }

    def _origin(self, prompts: Sequence[tuple[int, ...]]) -> dict[str, Any]:
        """All that the answers depend on."""
        return {**self._sampling(), "prompts": [list(prompt) for prompt in prompts]}


def _scorable(answers: Sequence[Answer]) -> list[Answer]:
    found = [answer for answer in answers if len(answer.token_ids) > 1]
    if not found:
        raise ConfigurationError("every answer was empty: nothing to score")
    return found


def _empty_scores(subjects: Sequence[Subject], wanted: Sequence[SparsityParams]) -> list[Column]:
    """One list of all conditions per subject; the first subject's are the twins of the others'."""
    columns: list[Column] = []
    for subject in subjects:
        twins = columns[0] if columns else [None] * len(wanted)
        columns.append(
            [
                ConditionScore(
                    params, subject.selector.effective_lambda(params), subject.runner, subject.dtype, twin=twin
                )
                for params, twin in zip(wanted, twins, strict=True)
            ]
        )
    return columns
