"""What the extension module offers, for the type checker and for reading (`csrc/bind.cpp` implements it)."""

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from glass_core.models.spec import ModelSpec
from glass_core.sparsity.ranking import RankWeights
from glass_core.sparsity.refinement import Refinement

FfnPath = Literal["cheapest", "union_list", "all_neurons"]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
# name, kind, offset, num_bytes, rows, cols, padded_cols, row_bytes
TensorRow = tuple[str, str, int, int, int, int, int, int]
# name, problem (empty = it can be used), whether the problem is a failed check of its kernels
IsaRow = tuple[str, str, bool]
# the row's first `length` tokens: their sums go to these arrays (num_layers, intermediate_size)
Stage = tuple[int, Floats, Floats]
# prior sums of absolute values and of squares (None = zero), stages in ascending order, the last is the whole row
StatisticsRequest = tuple[Floats | None, Floats | None, list[Stage]]
# repetition, frequency and presence penalty; tokens seen and how often the answer has each; tokens with a bias and
# their biases; tokens that cannot be drawn
Adjustments = tuple[float, float, float, Indices, Indices, Indices, Floats, Indices]
# temperature, top_k, top_p, min_p, (lower and upper half of the 128-bit seed), index of the draw, number of
# log-probabilities (-1 = none at all), what changes the logits; None = greedy on the raw logits
SampleRequest = tuple[float, int, float, float, tuple[int, int], int, int, Adjustments | None] | None
# token, problem (see `DRAW_PROBLEMS`), (the token's log-probability, those of the most probable tokens)
Drawn = tuple[int, int, tuple[float, list[tuple[int, float]]] | None]
# FFN weights multiplied for every token whose plan is not refined, for every token whose plan is, and FFN weight bytes
# read, all over all layers
Executed = tuple[int, int, int]
# FFN weights multiplied, summed over a row's tokens, and weight bytes read for them, over all layers
CascadeCounts = tuple[int, int]
# of the tokens whose logits were wanted: what was drawn, the logits (valid until the next step); then what the step
# executed; and what the cascades of each row with a refined plan take by themselves
StepOutput = tuple[list[Drawn], Floats, Executed, list[CascadeCounts]]


class NativeModel(Protocol):
    """Weights, KV cache, plans and threads."""

    @property
    def isa(self) -> str: ...

    @property
    def num_threads(self) -> int: ...

    def add_plan(self, key: int, layers: Sequence[Indices], refinement: Refinement | None) -> list[int]:
        """Of how many groups of 32 neurons (DOWN_GROUP) each layer keeps some.

        The refinement's arrays are kept alive as long as the plan, not copied. Raises ValueError for a key in use and
        for neurons that do not ascend within a layer.
        """
        ...

    def remove_plan(self, key: int) -> None: ...

    def magnitudes(self) -> Floats: ...

    def choose_neurons(
        self,
        values: Floats | None,
        model_ranks: Indices | None,
        weights: RankWeights,
        budgets: Sequence[int],
        reference: Indices | None,
    ) -> tuple[Indices, int] | None:
        """Each layer's best `budgets[l]` neurons, ascending, read-only, one layer after the other, by values or ranks
        (num_layers, m), or both with `weights` (num_layers, 2) on prompt's and model's ranks; and how many of them
        `reference` ranks among its layer's best `budgets[l]`. None when a value is NaN or infinite.

        Raises TypeError for arrays of other types or not contiguous, ValueError for sizes, weights or budgets that
        cannot be.
        """
        ...

    def set_ffn_break_even(self, points: Sequence[tuple[int, float]]) -> None:
        """(number of rows, density) in ascending order: above it all neurons are computed instead of the union's list.

        Raises ValueError for points that are not that.
        """
        ...

    def time_ffn(self, num_rows: int, density: float, seconds: float) -> tuple[float, float]:
        """Nanoseconds per neuron and layer, all threads together, of lists that keep `density` of the neurons, and of
        all neurons masked, in steps of `num_rows` tokens.

        Takes about `seconds`, but as long as two passes over the FFN each way. Raises ValueError for rows outside
        [1, 64] or a density outside (0, 1].
        """
        ...

    def force_ffn_path(self, path: FfnPath) -> None:
        """For measurements and tests: take one path whatever the break-even says."""
        ...

    def step(
        self,
        tokens: Indices,
        blocks: Indices,
        layout: Indices,
        frequencies: Floats,
        statistics: list[StatisticsRequest],
        samples: list[SampleRequest],
        scales: Floats,
    ) -> StepOutput:
        """Run one step.

        `tokens` and `blocks` of all rows, one after the other; `layout` (rows, 6): start, number of tokens, number of
        blocks, plan key (-1 = dense), collect, number of last tokens whose logits are wanted (1 to sample);
        `frequencies` (1 or tokens, num_ropes * head_dim / 2); `statistics`: one request per row that collects;
        `samples`: one per token whose logits are wanted; `scales`: one factor per token, which counts where its row's
        plan is refined, or none (1 for all). Raises ValueError for rows that cannot be run.
        """
        ...


class NativeKernels(Protocol):
    """The submodule `_native.kernels`, but for what only its tests use."""

    def available_isas(self) -> list[str]:
        """Instruction sets this build has kernels for and that can be used here, best first."""
        ...

    def isa_states(self) -> list[IsaRow]:
        """Every instruction set this build has kernels for, best first."""
        ...

    def passed_over_isas(self) -> list[IsaRow]:
        """Those better than the best that can be used."""
        ...

    def choose_isa(self, isa: str) -> str:
        """The named instruction set, or the best for an empty name. Raises ValueError when it cannot be used."""
        ...


class NativeModule(Protocol):
    """The module `_native`."""

    __file__: str

    @property
    def kernels(self) -> NativeKernels: ...

    def kv_block_bytes(self, spec: ModelSpec, block_size: int, dtype: str) -> int:
        """Bytes of one block of `block_size` positions, all layers, in a KV cache of bf16 or int8."""
        ...

    def draw(self, logits: Floats, requests: list[SampleRequest]) -> list[Drawn]:
        """The step's sampler by itself, one row of logits (rows, vocab_size) per request; for tests."""
        ...

    def Model(
        self,
        path: str,
        payload_offset: int,
        payload_bytes: int,
        tensors: Iterable[TensorRow],
        spec: ModelSpec,
        format: str,
        sizes: tuple[int, int, int, str],
        isa: str,
    ) -> NativeModel:
        """`sizes`: threads, KV blocks, positions per block, type of the KV cache. Raises RuntimeError for an image that
        does not fit."""
        ...
