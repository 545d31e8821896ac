"""What sparse answers are expected to lose: KL(dense || sparse) per token on text that measured nothing else.

For every profile of an artifact, static (`a_glass`, with the profile's own lambdas) and refined where it has
thresholds: the dense model's own answers, teacher-forced as a server decodes them, the prompt dense. Float32, both
sides: what a runner's quantization adds to the dense model is not in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from glass_core.api import SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.expected_kl import REFINED, ExpectedKl
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.workfolder import WorkFolder
from glass_core.offline.divergence import token_kl
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.longform import DenseAnswer, predict_answer, run_dense
from glass_core.offline.evaluate.refined import TorchRows, decode_refined
from glass_core.offline.evaluate.refined_scores import score_refined
from glass_core.offline.evaluate.subjects import model_selector, refined_rows
from glass_core.offline.progress import Progress
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.artifact import ArtifactManifest, GlobalStatistics
from glass_core.sparsity.manifest import CorpusValue
from glass_core.sparsity.selection import PlanSelector

# between points the server interpolates: closer where refinement's answers are good enough to be chosen
REFINED_SPARSITIES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)
STATIC_SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
# tables are stored as float32: 0.6 must still be measured where a table ends at 0.6
_ROUNDING = 1e-6

FORMULA = (
    "mean over the answers' tokens but the first of KL(dense || sparse), running maximum over sparsities, 95 % "
    "bootstrap interval over answers"
)

# KL summed over an answer's tokens, in nats: one list of answers per sparsity
Sums = list[list[float]]


@dataclass(frozen=True, slots=True)
class Condition:
    """One table: a profile, refined or static, at these sparsities."""

    profile: str
    refine: bool
    sparsities: tuple[float, ...]

    @property
    def name(self) -> str:
        """Of the table among its profile's."""
        return REFINED if self.refine else SparsityParams().method

    @property
    def params(self) -> list[SparsityParams]:
        return [SparsityParams(value, profile=self.profile, refine=self.refine) for value in self.sparsities]


@dataclass(frozen=True, slots=True)
class ExpectedKlRun:
    """A loaded model and held-out sequences, made by `source`."""

    model: TorchModel
    sequences: Sequence[CorpusSequence]
    source: str
    work: WorkFolder
    progress: Progress

    def add_to(self, statistics: GlobalStatistics) -> GlobalStatistics:
        """The statistics with tables for all of their profiles, and a manifest that says so.

        Raises ConfigurationError when there are fewer than two answers: their spread is part of a table.
        """
        answers = to_answers(self.sequences)
        num_tokens = [len(answer.token_ids) - 1 for answer in answers]
        sums = self._all_sums(conditions(statistics), model_selector(self.model, statistics), answers)
        tables: dict[str, dict[str, ExpectedKl]] = {}
        for condition, values in sums:
            tables.setdefault(condition.profile, {})[condition.name] = make_table(condition, values, num_tokens)
        return replace(statistics, expected_kl=tables, manifest=self._manifest(statistics, num_tokens))

    def _all_sums(
        self, wanted: Sequence[Condition], selector: PlanSelector, answers: Sequence[Answer]
    ) -> list[tuple[Condition, Sums]]:
        dense = cache(lambda: [run_dense(self.model, answer) for answer in answers])
        found: list[tuple[Condition, Sums]] = []
        with self.progress.task("measuring expected KL", len(wanted)) as advance:
            for index, condition in enumerate(wanted):
                make = partial(self._sums, condition, selector, dense)
                # not by the profile's name, which may come from someone else's file
                found.append((condition, self.work.numbers(f"expected-kl-{index:04d}", make)))
                advance()
        return found

    def _sums(self, condition: Condition, selector: PlanSelector, dense: Callable[[], Sequence[DenseAnswer]]) -> Sums:
        measure = refined_sums if condition.refine else static_sums
        return measure(self.model, selector, condition.params, dense())

    def _manifest(self, statistics: GlobalStatistics, num_tokens: Sequence[int]) -> ArtifactManifest:
        manifest = statistics.manifest
        described: dict[str, CorpusValue] = {
            "expected_kl_source": self.source,
            "num_expected_kl_sequences": len(num_tokens),
            "num_expected_kl_tokens": sum(num_tokens),
        }
        return replace(
            manifest,
            formulas={**manifest.formulas, "expected_kl": FORMULA},
            corpus={**manifest.corpus, **described},
        )


def conditions(statistics: GlobalStatistics) -> list[Condition]:
    """Every profile static, and those with thresholds refined as far as these go."""
    static = [Condition(profile, False, STATIC_SPARSITIES) for profile in sorted(statistics.profiles)]
    refined = [
        Condition(profile, True, _up_to(table.max_sparsity)) for profile, table in sorted(statistics.refinement.items())
    ]
    return static + refined


def _up_to(max_sparsity: float) -> tuple[float, ...]:
    return tuple(value for value in REFINED_SPARSITIES if value <= max_sparsity + _ROUNDING)


def to_answers(sequences: Sequence[CorpusSequence]) -> list[Answer]:
    """Prompt and answer of every sequence. A document, and a chat whose answer is too short to score (nobody scores an
    answer's first token), lends its first quarter as prompt.

    Raises ConfigurationError when fewer than two have an answer of two tokens.
    """
    answers = []
    for sequence in sequences:
        num_prompt, num_tokens = sequence.first_decoded, len(sequence.token_ids)
        split = num_prompt if 1 < num_prompt < num_tokens - 1 else max(num_tokens // 4, 1)
        answers.append(Answer(sequence.token_ids[:split], sequence.token_ids[split:]))
    usable = [answer for answer in answers if len(answer.token_ids) > 1]
    if len(usable) < 2:
        raise ConfigurationError(f"expected KL needs two held-out answers of two tokens at least, got {len(usable)}")
    return usable


def make_table(condition: Condition, sums: Sums, num_tokens: Sequence[int]) -> ExpectedKl:
    """Means over all tokens, their intervals, none of them falling with the sparsity."""
    bootstrap = Bootstrap.over(len(num_tokens), seed=0)
    means = [sum(values) / sum(num_tokens) for values in sums]
    intervals = np.array([bootstrap.interval(values, num_tokens) for values in sums])
    return ExpectedKl(condition.sparsities, _rising(means), _rising(intervals[:, 0]), _rising(intervals[:, 1]))


def static_sums(
    model: TorchModel, selector: PlanSelector, params: Sequence[SparsityParams], dense: Sequence[DenseAnswer]
) -> Sums:
    """Under plans made from each prompt."""

    def total(answer: DenseAnswer, item: SparsityParams) -> float:
        plan = selector.select(item, answer.prompt_statistics)
        return float(token_kl(answer.log_probs, predict_answer(model, answer, plan)).sum())

    return [[total(answer, item) for answer in dense] for item in params]


def refined_sums(
    model: TorchModel, selector: PlanSelector, params: Sequence[SparsityParams], dense: Sequence[DenseAnswer]
) -> Sums:
    """Under refined plans, all answers at all sparsities side by side."""
    rows = refined_rows(selector, [(item, answer) for item in params for answer in dense])
    (scores,) = score_refined([decode_refined(TorchRows(model, rows), rows)], [row.dense for row in rows])
    sums = [score.from_dense.kl for score in scores]
    return [sums[start : start + len(dense)] for start in range(0, len(sums), len(dense))]


def _rising(values: npt.ArrayLike) -> tuple[float, ...]:
    """The running maximum, not below 0 (rounding), to 6 digits."""
    return tuple(float(f"{value:.6g}") for value in np.maximum.accumulate(np.maximum(values, 0.0)))
