"""NativeRunner: the Runner protocol on the extension module. It turns rows into arrays and calls once."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from glass_core.api import StepCost, TokenLogprobs
from glass_core.config import CacheConfig, EngineConfig
from glass_core.errors import CheckpointError, ConfigurationError, EngineFailureError
from glass_core.models.decoder import canonical_shape
from glass_core.models.registry import tensor_names
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import RowResult, StepBatch, StepResult, StepRow
from glass_core.runners.checks import (
    block_problem,
    check_rows,
    scales_problem,
    statistics_problem,
    token_problem,
)
from glass_core.runners.native.checkpoint_image import open_or_make_image
from glass_core.runners.native.costs import ExecutedWork, row_costs
from glass_core.runners.native.extension import load_extension, requested_isa
from glass_core.runners.native.ffn_costs import choose_paths_by_cost, measure_paths
from glass_core.runners.native.ffn_work import FfnWork, dense_work
from glass_core.runners.native.huge_pages import keep_in_huge_pages
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.plan_keys import PlanKeys
from glass_core.runners.native.processor import num_cores
from glass_core.runners.native.rope import RopeFrequencies
from glass_core.runners.native.sample_requests import DRAW_PROBLEMS, SampleRequests
from glass_core.runners.native.selection import NativeChooser
from glass_core.runners.native.statistics import RowStatistics
from glass_core.runners.native.types import (
    CascadeCounts,
    Drawn,
    Floats,
    Indices,
    NativeModel,
    SampleRequest,
    StepOutput,
    TensorRow,
)
from glass_core.runners.sampling import NOT_FINITE
from glass_core.sparsity.choice import NeuronChooser
from glass_core.sparsity.local_stats import LocalStatistics

_NO_SCALES = np.empty(0, np.float32)


def load(config: EngineConfig) -> "NativeRunner":
    """Map the configured model's image, made first where there is none.

    Raises ConfigurationError when the extension is not built or a setting cannot be, and ModelError when the model
    cannot be used.
    """
    load_extension()  # before an image is made for nothing
    if config.device != "cpu":
        raise ConfigurationError(f"device must be cpu for native, got {config.device!r}")
    header = open_or_make_image(config.model_path, config.dtype)
    runner = NativeRunner(header, config.cache, num_threads=config.num_threads)
    runner.choose_ffn_paths_by_cost()
    return runner


class NativeRunner:
    """Owns the mapped weights, the KV cache and the plans of running sequences. Not thread-safe: one step at a time."""

    def __init__(
        self, header: ImageHeader, cache: CacheConfig, *, num_threads: int | None = None, isa: str | None = None
    ) -> None:
        """`num_threads` None = the processors this process may use; `isa` None = $GLASS_CPU_ISA, else the best one.

        Raises ConfigurationError for a cache too small for one block or an unknown instruction set, CheckpointError
        for an image that does not hold the model's tensors.
        """
        self._header = header
        self._cache = cache
        self.num_kv_blocks = _num_blocks(header.spec, cache)
        threads = num_cores() if num_threads is None else num_threads
        chosen = requested_isa() if isa is None else isa
        keep_in_huge_pages(header.path)
        self._model: NativeModel | None = _open_model(
            header, (threads, self.num_kv_blocks, cache.block_size, cache.kv_cache_dtype), chosen
        )
        self._plans = PlanKeys(self._model, header)
        self._rope = RopeFrequencies(header.spec)
        self._samples = SampleRequests(header.spec.vocab_size)
        self._magnitudes: Floats | None = None
        self._dense_work = dense_work(header)
        self.isa = self._model.isa
        self.kv_cache_dtype = cache.kv_cache_dtype
        self.num_threads = threads

    @property
    def spec(self) -> ModelSpec:
        return self._header.spec

    @property
    def header(self) -> ImageHeader:
        """Of the image it maps."""
        return self._header

    @property
    def fingerprint(self) -> str:
        return self._header.fingerprint

    @property
    def format(self) -> str:
        """int4, int8 or bf16."""
        return self._header.format

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def refines(self) -> bool:
        return True

    @property
    def choose_neurons(self) -> NeuronChooser:
        return NativeChooser(self._open)

    @property
    def num_parameters(self) -> int:
        return sum(prod(canonical_shape(self.spec, name)) for name in tensor_names(self.spec))

    def view_bytes(self, budgets: Sequence[int]) -> int:
        """Index lists only: four bytes a kept neuron, and one bit for every neuron of the model."""
        words = -(-self.spec.intermediate_size // 32)
        return 4 * (sum(budgets) + words * len(budgets))

    def neuron_magnitudes(self) -> npt.NDArray[np.float32]:
        """Of the weights as the image stores them; computed on first use."""
        if self._magnitudes is None:
            self._magnitudes = self._open().magnitudes()
        return self._magnitudes

    def execute(self, batch: StepBatch) -> StepResult:
        """Run one step.

        Raises EngineFailureError for rows that cannot be run (before anything is written).
        """
        rows = batch.rows
        if not rows:
            return StepResult(())
        samples = [self._samples.request(row.sequence_id, row.sample) for row in rows if row.sample is not None]
        output, collected = self._step(rows, [int(row.sample is not None) for row in rows], samples)
        drawn, _, executed, cascades = output
        draws = iter(drawn)
        planned = self._planned(rows, cascades)
        costs = row_costs(self.spec, rows, executed=ExecutedWork(*executed), dense=self._dense_work, planned=planned)
        results = (
            _row_result(row, cost, None if row.sample is None else next(draws), collected.get(row.sequence_id))
            for row, cost in zip(rows, costs, strict=True)
        )
        return StepResult(
            tuple(
                replace(result, ffn_reads=self._ffn_reads(row, work)) if row.is_refined else result
                for row, result, work in zip(rows, results, planned, strict=True)
            )
        )

    def score(self, row: StepRow, num_logits: int) -> tuple[Floats, LocalStatistics | None]:
        """Run one row as `execute` does, and give the logits of its last `num_logits` tokens, float32 (num_logits,
        vocab_size), instead of drawing from them; and the row's statistics when it collects.

        For measuring (see `scoring.py`), no part of the Runner protocol. Raises as `execute`.
        """
        output, collected = self._step((row,), (num_logits,), [None] * num_logits)
        statistics = collected.get(row.sequence_id)
        return _finite_logits(output), None if statistics is None else statistics.result

    def score_refined(self, rows: Sequence[StepRow]) -> tuple[Floats, list[float]]:
        """As `score`, the logits of the last token of rows with refined plans, (rows, vocab_size), and their
        `ffn_reads`."""
        output, _ = self._step(rows, [1] * len(rows), [None] * len(rows))
        planned = self._planned(rows, output[3])
        return _finite_logits(output), [self._ffn_reads(row, work) for row, work in zip(rows, planned, strict=True)]

    def choose_ffn_paths_by_cost(self) -> None:
        """Without it a step walks the list of kept neurons whenever it is not all of them. See ffn_costs.py."""
        choose_paths_by_cost(self._open(), self._header)

    def measure_ffn_costs(self) -> None:
        """As `choose_ffn_paths_by_cost`, with new measurements in place of those that are kept."""
        measure_paths(self._open(), self._header)

    def release(self, sequence_id: str) -> None:
        self._plans.release(sequence_id)
        self._samples.release(sequence_id)

    def close(self) -> None:
        """Unmap everything. No step can be run afterwards."""
        self._plans = PlanKeys(None, self._header)
        self._model = None

    def _open(self) -> NativeModel:
        if self._model is None:
            raise EngineFailureError("the native runner is closed")
        return self._model

    def _step(
        self, rows: Sequence[StepRow], num_logits: Sequence[int], samples: list[SampleRequest]
    ) -> tuple[StepOutput, dict[str, RowStatistics]]:
        """Check the rows and run them: the extension's output, and the statistics of those that collect. `num_logits`:
        of how many last tokens of each row the logits are wanted; `samples`: one for each of these tokens."""
        checks = (self._token_problem, self._block_problem, self._statistics_problem, scales_problem)
        check_rows(StepBatch(tuple(rows)), *checks)
        collected = {row.sequence_id: RowStatistics.for_row(row, self.spec) for row in rows if row.collect_statistics}
        requests = [statistics.request() for statistics in collected.values()]
        tokens, blocks, layout = self._arrays(rows, num_logits)
        try:
            output = self._open().step(tokens, blocks, layout, self._rope.of(rows), requests, samples, _scales(rows))
        except ValueError as error:
            raise EngineFailureError(f"the native step refused its input: {error}") from error
        return output, collected

    def _planned(self, rows: Sequence[StepRow], cascades: Sequence[CascadeCounts]) -> list[FfnWork]:
        """What each row takes alone. `cascades` are those of the refined rows, in order."""
        counted = iter(cascades)
        return [FfnWork(*next(counted)) if row.is_refined else self._planned_alike(row) for row in rows]

    def _planned_alike(self, row: StepRow) -> FfnWork:
        """Of a row whose tokens all take the same."""
        plan = row.plan
        work = self._dense_work if plan is None else self._plans.find(row.sequence_id, plan).work
        assert work is not None  # the row is not refined
        return FfnWork(len(row.token_ids) * work.num_weights, work.num_bytes)

    def _ffn_reads(self, row: StepRow, work: FfnWork) -> float:
        return work.num_weights / (len(row.token_ids) * self._dense_work.num_weights)

    def _arrays(self, rows: Sequence[StepRow], num_logits: Sequence[int]) -> tuple[Indices, Indices, Indices]:
        """Tokens, blocks and layout of the rows as the extension takes them."""
        tokens: list[int] = []
        blocks: list[int] = []
        layout = []
        for row, wanted in zip(rows, num_logits, strict=True):
            tokens += row.token_ids
            blocks += row.block_table
            plan = -1 if row.plan is None else self._plans.find(row.sequence_id, row.plan).key
            layout.append(
                (
                    row.start,
                    len(row.token_ids),
                    len(row.block_table),
                    plan,
                    int(row.collect_statistics),
                    wanted,
                )
            )
        return np.array(tokens, np.int32), np.array(blocks, np.int32), np.array(layout, np.int32)

    def _token_problem(self, row: StepRow) -> str | None:
        return token_problem(row, self.spec)

    def _block_problem(self, row: StepRow) -> str | None:
        return block_problem(row, num_blocks=self.num_kv_blocks, block_size=self._cache.block_size)

    def _statistics_problem(self, row: StepRow) -> str | None:
        return statistics_problem(row, self.spec)


def _finite_logits(output: StepOutput) -> Floats:
    """A copy of a step's logits. Raises EngineFailureError when one is not finite."""
    drawn, logits, _, _ = output
    if any(problem for _, problem, _ in drawn):
        raise EngineFailureError(NOT_FINITE)
    return logits.copy()


def _row_result(row: StepRow, cost: StepCost, drawn: Drawn | None, collected: RowStatistics | None) -> RowResult:
    token, logprobs, error = (None, None, None) if drawn is None else _read(drawn)
    statistics = None if collected is None else collected.result
    snapshots = () if collected is None else collected.snapshots(len(row.snapshot_ends))
    return RowResult(cost, token, statistics, snapshots, logprobs=logprobs, error=error)


def _scales(rows: Sequence[StepRow]) -> Floats:
    """The factors on refined rows' thresholds, one per token of the step; none where all are 1."""
    if not any(row.refine_scales for row in rows):
        return _NO_SCALES
    return np.array([scale for row in rows for scale in row.refine_scales or (1.0,) * len(row.token_ids)], np.float32)


def _read(drawn: Drawn) -> tuple[int | None, TokenLogprobs | None, str | None]:
    token, problem, logprobs = drawn
    if problem:
        return None, None, DRAW_PROBLEMS[problem]
    return token, None if logprobs is None else TokenLogprobs(logprobs[0], tuple(logprobs[1])), None


def _num_blocks(spec: ModelSpec, cache: CacheConfig) -> int:
    size = kv_block_bytes(spec, cache.block_size, cache.kv_cache_dtype)
    if cache.kv_cache_bytes < size:
        raise ConfigurationError(
            f"kv_cache_bytes ({cache.kv_cache_bytes}) is too small: one block of {cache.block_size} tokens takes "
            f"{size} bytes"
        )
    return cache.kv_cache_bytes // size


def kv_block_bytes(spec: ModelSpec, block_size: int, kv_cache_dtype: str) -> int:
    """Bytes of the keys and values of `block_size` positions, in all layers, scales included."""
    return load_extension().kv_block_bytes(spec, block_size, kv_cache_dtype)


def _open_model(header: ImageHeader, sizes: tuple[int, int, int, str], isa: str) -> NativeModel:
    try:
        return load_extension().Model(
            str(header.path),
            header.payload_offset,
            header.payload_bytes,
            _tensor_rows(header),
            header.spec,
            header.format,
            sizes,
            isa,
        )
    except ValueError as error:
        raise ConfigurationError(f"the native runner cannot be set up: {error}") from error
    except RuntimeError as error:
        raise CheckpointError(f"{header.path}: {error}") from error


def _tensor_rows(header: ImageHeader) -> list[TensorRow]:
    rows = []
    for name, tensor in header.tensors.items():
        num_rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        sizes = (tensor.offset, tensor.num_bytes, num_rows, tensor.shape[-1], tensor.padded_cols, tensor.row_bytes)
        rows.append((name, tensor.kind, *sizes))
    return rows
