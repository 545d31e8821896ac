"""TorchRunner: the reference implementation of the Runner protocol, on CPU or CUDA, in float32 or bfloat16.

It need not be fast, it must be right: every later runner is tested against it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glass_core.api import StepCost
from glass_core.config import AUTO, KV_CACHE_DTYPES, CacheConfig, EngineConfig
from glass_core.errors import ConfigurationError
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import RowResult, StepBatch, StepResult, StepRow
from glass_core.runners.torch_runner.checks import check_batch
from glass_core.runners.torch_runner.drawing import Drawn, draw_tokens
from glass_core.runners.torch_runner.kv_pool import KVPool
from glass_core.runners.torch_runner.model import Ffn, TorchModel
from glass_core.runners.torch_runner.refined import RefinedFfn
from glass_core.runners.torch_runner.statistics import StatisticsCollector
from glass_core.runners.torch_runner.step import PlacedRow, StepFfn, flat_tokens, paged_attention, place_rows
from glass_core.runners.torch_runner.views import ViewCache, packed_bytes
from glass_core.sparsity.choice import NeuronChooser
from glass_core.sparsity.flops import refined_row_cost, row_cost

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(config: EngineConfig) -> "TorchRunner":
    """Load the configured model.

    Sets torch's thread count for the whole process when the config asks for one. Raises ConfigurationError for a dtype
    or device that cannot be used and ModelError when the model cannot be loaded.
    """
    dtype, device = _dtype(config.dtype), _device(config.device)
    if config.cache.kv_cache_dtype != KV_CACHE_DTYPES[0]:
        raise ConfigurationError(
            f"kv_cache_dtype {config.cache.kv_cache_dtype!r} needs the native runner; torch_runner stores keys and "
            f"values in its own dtype"
        )
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    return TorchRunner(TorchModel.load(config.model_path, dtype=dtype, device=device), config.cache)


class TorchRunner:
    """Owns the weights, the KV pool and the packed views of running sequences. Not thread-safe: one step at a time."""

    def __init__(self, model: TorchModel, cache: CacheConfig) -> None:
        self._model = model
        self._pool = KVPool(model.spec, cache, model.dtype, str(model.device))
        self._views = ViewCache(model)

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    @property
    def fingerprint(self) -> str:
        return self._model.fingerprint

    @property
    def device(self) -> str:
        return str(self._model.device)

    @property
    def isa(self) -> None:
        """The kernels are torch's, which has its own choice."""
        return

    @property
    def num_threads(self) -> int:
        return torch.get_num_threads()

    @property
    def kv_cache_dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def num_parameters(self) -> int:
        return self._model.weights.num_parameters

    @property
    def num_kv_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def refines(self) -> bool:
        return True

    @property
    def choose_neurons(self) -> NeuronChooser | None:
        return None

    @property
    def view_bytes_used(self) -> int:
        """Bytes the packed views hold now."""
        return self._views.num_bytes

    def view_bytes(self, budgets: Sequence[int]) -> int:
        return packed_bytes(self.spec, budgets, self._model.dtype)

    def neuron_magnitudes(self) -> npt.NDArray[np.float32]:
        norms = [
            torch.linalg.vector_norm(layer.gate_proj.float(), dim=1)
            * torch.linalg.vector_norm(layer.up_proj.float(), dim=1)
            for layer in self._model.layers
        ]
        magnitudes: npt.NDArray[np.float32] = torch.stack(norms).cpu().numpy()
        return magnitudes

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> StepResult:
        """Run one step.

        Raises EngineFailureError for rows that cannot be run (before anything is written).
        """
        check_batch(batch, self.spec, self._pool)
        placed = place_rows(batch)
        if not placed:
            return StepResult(())
        collectors = [self._collector(item.row) for item in placed]
        refined = [self._refined(item.row) for item in placed]
        hidden = self._forward(placed, collectors, refined)
        draws = self._sample(placed, hidden)
        results: list[RowResult | None] = [None] * len(placed)
        for item, collector, ffn in zip(placed, collectors, refined, strict=True):
            drawn = draws.get(item.index, Drawn())
            results[item.index] = RowResult(
                self._cost(item.row) if ffn is None else self._refined_cost(item.row, ffn),
                drawn.token_id,
                None if collector is None else collector.result(),
                () if collector is None else collector.snapshots(),
                None if ffn is None else ffn.reads,
                logprobs=drawn.logprobs,
                error=drawn.error,
            )
        return StepResult(tuple(result for result in results if result is not None))

    def release(self, sequence_id: str) -> None:
        self._views.release(sequence_id)

    def close(self) -> None:
        self._views = ViewCache(self._model)

    def _forward(
        self,
        placed: Sequence[PlacedRow],
        collectors: Sequence[StatisticsCollector | None],
        refined: Sequence[RefinedFfn | None],
    ) -> Tensor:
        """Final hidden states of all the step's tokens, (n, hidden)."""
        device = self._model.device
        sparse = [
            self._pruned(item.row) if cascade is None else cascade.ffn
            for item, cascade in zip(placed, refined, strict=True)
        ]
        token_ids, positions, lengths = flat_tokens(placed, device)
        return self._model.forward(
            token_ids,
            positions,
            attention=paged_attention(self.spec, self._pool, placed, device),
            ffn=StepFfn(self._model, placed, sparse, collectors),
            rope_lengths=lengths,
        )

    def _sample(self, placed: Sequence[PlacedRow], hidden: Tensor) -> dict[int, Drawn]:
        """Draws by index of the row in the batch."""
        asked = [(item, item.row.sample) for item in placed if item.row.sample is not None]
        if not asked:
            return {}
        last_tokens = torch.tensor([item.tokens.stop - 1 for item, _ in asked], device=hidden.device)
        logits = self._model.logits(hidden.index_select(0, last_tokens))
        draws = draw_tokens(logits, [sample for _, sample in asked])
        return {item.index: drawn for (item, _), drawn in zip(asked, draws, strict=True)}

    def _pruned(self, row: StepRow) -> Ffn | None:
        return None if row.plan is None else self._views.get(row.sequence_id, row.plan).ffn

    def _refined(self, row: StepRow) -> RefinedFfn | None:
        if row.plan is None or row.plan.refinement is None:
            return None
        views = self._views.get(row.sequence_id, row.plan)
        return RefinedFfn(self.spec, views, row.plan.refinement, len(row.token_ids), row.refine_scales)

    def _collector(self, row: StepRow) -> StatisticsCollector | None:
        if not row.collect_statistics:
            return None
        return StatisticsCollector(
            self.spec,
            len(row.token_ids),
            prior=row.prior_statistics,
            snapshot_lengths=[end - row.start for end in row.snapshot_ends],
        )

    def _cost(self, row: StepRow) -> StepCost:
        return row_cost(
            self.spec,
            num_tokens=len(row.token_ids),
            num_keys=row.start + len(row.token_ids),
            num_logits=0 if row.sample is None else 1,
            budgets=None if row.plan is None else row.plan.budgets,
            bytes_per_weight=self._model.dtype.itemsize,
        )

    def _refined_cost(self, row: StepRow, ffn: RefinedFfn) -> StepCost:
        return refined_row_cost(
            self.spec,
            num_tokens=len(row.token_ids),
            num_keys=row.start + len(row.token_ids),
            num_logits=0 if row.sample is None else 1,
            num_products=ffn.num_products,
            num_weights=ffn.num_weights,
            bytes_per_weight=self._model.dtype.itemsize,
        )


def _dtype(name: str) -> torch.dtype:
    if name == AUTO:
        return torch.float32
    if name not in DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)} for torch_runner, got {name!r}")
    return DTYPES[name]


def _device(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device must be cpu or cuda, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device must be cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device {name!r} was asked for, but this machine or this torch build has no CUDA")
    return str(device)
