"""A calibration run from corpus to artifact: draw, measure, sensitivities, write."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from glass_core.offline.calibrate.corpus import (
    CorpusSequence,
    draw_seed,
    has_chat_frame,
    make_corpus,
    max_steps,
    sampler_description,
)
from glass_core.offline.calibrate.expected_kl import ExpectedKlRun
from glass_core.offline.calibrate.refinement_run import RefinementRun
from glass_core.offline.calibrate.sensitivity import better_half, layer_sensitivity, run_dense
from glass_core.offline.calibrate.settings import (
    CHAT_SOURCE,
    NULL_SOURCE,
    NUM_REFINEMENT_SEQUENCES,
    CalibrationSettings,
)
from glass_core.offline.calibrate.statistics import FORMULAS, Float32Array, add_up, down_norms, measure_sequence
from glass_core.offline.calibrate.workfolder import WorkFolder
from glass_core.offline.generation import cache_for
from glass_core.offline.progress import Progress
from glass_core.offline.provenance import versions
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.artifact import (
    ArtifactManifest,
    GlobalStatistics,
    check_fingerprint,
    read_artifact,
    write_artifact,
)
from glass_core.sparsity.budget import SENSITIVITY, sensitivity_profile, uniform_profile
from glass_core.text import TextProcessor

# room in the KV cache for a chat template around the counted tokens
_TEMPLATE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """A loaded model and what to measure on it."""

    model: TorchModel
    text: TextProcessor
    model_dir: Path
    model_name: str
    settings: CalibrationSettings
    progress: Progress

    def execute(self, output: Path) -> GlobalStatistics:
        """Measure everything that is not yet measured, write the artifact, drop the partial results."""
        work = WorkFolder(self.settings.key(self.model.fingerprint))
        corpus = work.corpus(lambda: self._draw_corpus(self.settings, "drawing the corpus"))
        # expected of what a server reads, rounded as the file stores it
        unfinished = work.path / "artifact.safetensors"
        write_artifact(unfinished, self._assemble(corpus, work))
        statistics = self._expected_kl_run(work).add_to(read_artifact(unfinished))
        write_artifact(output, statistics)
        work.remove()
        return statistics

    def add_expected_kl(self, artifact: Path, output: Path) -> GlobalStatistics:
        """Measure what answers under an artifact's profiles lose, and write the artifact with that."""
        statistics = read_artifact(artifact)
        check_fingerprint(statistics, self.model.fingerprint)
        content = hashlib.sha256(artifact.read_bytes()).hexdigest()[:16]
        work = WorkFolder(f"{self.settings.key(self.model.fingerprint)}-{content}")
        measured = self._expected_kl_run(work).add_to(statistics)
        write_artifact(output, measured)
        work.remove()
        return measured

    def _expected_kl_run(self, work: WorkFolder) -> ExpectedKlRun:
        """On text that measured nothing else: chats or documents of its own, or a file's held-out windows."""
        if self.settings.file is not None:
            held_out = self._draw_corpus(self.settings, "reading held-out text")[self.settings.num_sequences :]
            return ExpectedKlRun(self.model, held_out, self.settings.source_name, work, self.progress)
        chats = has_chat_frame(self.text)
        settings = self.settings.for_expected_kl(draw_seed(self.settings.seed, 0, "expected-kl"), chats=chats)
        corpus = work.corpus(lambda: self._draw_corpus(settings, "drawing held-out text"), name="held-out")
        return ExpectedKlRun(self.model, corpus, settings.source_name, work, self.progress)

    def _draw_corpus(self, settings: CalibrationSettings, task: str) -> list[CorpusSequence]:
        cache = cache_for(
            self.model.spec,
            num_sequences=settings.total_sequences,
            num_tokens=settings.sequence_length + _TEMPLATE_TOKENS,
            bytes_per_value=self.model.dtype.itemsize,
        )
        with self.progress.task(task, max_steps(settings)) as advance:
            return make_corpus(TorchRunner(self.model, cache), self.text, self.model_dir, settings, advance)

    def _assemble(self, corpus: Sequence[CorpusSequence], work: WorkFolder) -> GlobalStatistics:
        measured, held_out = corpus[: self.settings.num_sequences], corpus[self.settings.num_sequences :]
        neurons = self._neuron_statistics(measured, work) | {"down_norm": down_norms(self.model)}
        sensitivity = self._sensitivities(held_out, neurons["activation_l1"], work)
        refinement = self._refinement_run(measured, work)
        profiles = (uniform_profile(self.model.spec.num_layers), sensitivity_profile(sensitivity))
        return GlobalStatistics(
            manifest=self._manifest(measured, held_out, refinement.corpus),
            **neurons,
            sensitivity=sensitivity,
            profiles={profile.name: profile for profile in profiles},
            refinement={SENSITIVITY: refinement.table(neurons, sensitivity)},
            expected_kl={},
        )

    def _refinement_run(self, measured: Sequence[CorpusSequence], work: WorkFolder) -> RefinementRun:
        """On chats where the model has a template for them: thresholds are for answers. Else on the corpus itself."""
        corpus = measured[:NUM_REFINEMENT_SEQUENCES]
        if self._refines_on_chats:
            settings = self.settings.for_refinement()
            corpus = work.corpus(lambda: self._draw_corpus(settings, "drawing chats"), name="chats")
        return RefinementRun(self.model, corpus, work, self.progress)

    @property
    def _refines_on_chats(self) -> bool:
        return self.settings.source == NULL_SOURCE and has_chat_frame(self.text)

    def _neuron_statistics(self, corpus: Sequence[CorpusSequence], work: WorkFolder) -> dict[str, Float32Array]:
        partials: list[dict[str, Float32Array]] = []
        with self.progress.task("measuring neurons", len(corpus)) as advance:
            for index, sequence in enumerate(corpus):
                partials.append(work.sequence_sums(index, partial(measure_sequence, self.model, sequence)))
                advance()
        return add_up(partials, corpus).means()

    def _sensitivities(
        self, held_out: Sequence[CorpusSequence], activation: Float32Array, work: WorkFolder
    ) -> Float32Array:
        layers = range(self.model.spec.num_layers)
        kept = better_half(activation)
        passes = [] if work.has_sensitivities(layers) else [run_dense(self.model, sequence) for sequence in held_out]
        values = []
        with self.progress.task("measuring layer sensitivity", len(layers)) as advance:
            for layer in layers:
                values.append(
                    work.sensitivity(layer, partial(layer_sensitivity, self.model, passes, layer, kept[layer]))
                )
                advance()
        return np.array(values, np.float32)

    def _manifest(
        self,
        measured: Sequence[CorpusSequence],
        held_out: Sequence[CorpusSequence],
        refinement: Sequence[CorpusSequence],
    ) -> ArtifactManifest:
        settings, spec = self.settings, self.model.spec
        return ArtifactManifest(
            model_name=self.model_name,
            fingerprint=self.model.fingerprint,
            num_layers=spec.num_layers,
            intermediate_size=spec.intermediate_size,
            formulas=dict(FORMULAS),
            corpus={
                "source": settings.source_name,
                "sampler": sampler_description(settings.source),
                **({} if settings.template_name is None else {"chat_template": settings.template_name}),
                "seed": settings.seed,
                "num_sequences": len(measured),
                "sequence_length": settings.sequence_length,
                "num_tokens": sum(sequence.num_counted for sequence in measured),
                "num_held_out_sequences": len(held_out),
                "num_held_out_tokens": sum(sequence.num_counted for sequence in held_out),
                "refinement_source": CHAT_SOURCE if self._refines_on_chats else settings.source_name,
                "num_refinement_sequences": len(refinement),
                "num_refinement_tokens": sum(len(item.token_ids) - item.first_decoded for item in refinement),
            },
            versions=versions(),
            command=settings.command(self.model_name),
        )


def load_model(model_dir: Path, device: str) -> TorchModel:
    """The model in float32: statistics are measured in the precision that the paper's formulas assume."""
    return TorchModel.load(model_dir, dtype=torch.float32, device=device)
