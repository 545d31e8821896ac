"""Teacher forcing on the native runner: what it predicts along a given text, under any plan. For measuring only.

The prompt runs densely once, as in the server, and its keys and values stay: every plan is then forced through the same
answer after the same prompt. An answer goes through in one step, which gives the same bits as one token at a time (the
runner promises it), at prefill speed.
"""

from collections.abc import Sequence
from dataclasses import replace

from glass_core.config import KV_CACHE_DTYPES, CacheConfig
from glass_core.errors import ConfigurationError
from glass_core.runners.base import StepBatch, StepRow
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.runner import NativeRunner, kv_block_bytes
from glass_core.runners.native.types import Floats
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan

_SEQUENCE = "scored"


class NativeScorer:
    """Scores one text after the other. Owns a runner with room for texts of `max_tokens` tokens.

    with NativeScorer(image, max_tokens=300) as scorer:
        statistics = scorer.read_prompt(prompt)
        logits = scorer.force(answer, selector.select(params, statistics))
    """

    def __init__(
        self,
        header: ImageHeader,
        *,
        max_tokens: int,
        num_threads: int | None = None,
        kv_cache_dtype: str = KV_CACHE_DTYPES[0],
    ) -> None:
        block_size = CacheConfig().block_size
        num_blocks = -(-max_tokens // block_size)
        num_bytes = num_blocks * kv_block_bytes(header.spec, block_size, kv_cache_dtype)
        cache = CacheConfig(block_size, num_bytes, kv_cache_dtype=kv_cache_dtype)
        self.runner = NativeRunner(header, cache, num_threads=num_threads)
        self._max_tokens = max_tokens
        self._block_table = tuple(range(num_blocks))
        self._num_prompt_tokens = 0

    def __enter__(self) -> "NativeScorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()

    def read_prompt(self, prompt: Sequence[int]) -> LocalStatistics:
        """Run a prompt densely, in place of the one before; its statistics."""
        self._num_prompt_tokens = len(prompt)
        return self._collect(prompt, start=0, num_logits=0)[1]

    def force(self, answer: Sequence[int], plan: SparsityPlan | None, scales: Sequence[float] = ()) -> Floats:
        """Logits after each token of an answer to the prompt under a plan (None = dense), float32 (n, vocab_size).

        `scales`, of a refined plan's thresholds: one per token, or none for 1.
        Raises ConfigurationError when prompt and answer are longer than `max_tokens`.
        """
        logits, _ = self.runner.score(self._row(answer, self._num_prompt_tokens, plan=plan, scales=scales), len(answer))
        self.runner.release(_SEQUENCE)
        return logits

    def force_token(self, token: int, index: int, plan: SparsityPlan, scale: float) -> tuple[Floats, float]:
        """Logits (1, vocab_size) after token number `index` of an answer under a refined plan, and the share of FFN
        weights read for it; tokens before it must have been forced in order.

        The token runs twice, for its logits and for its reads, to the same bits. Raises as `force`.
        """
        row = self._row((token,), self._num_prompt_tokens + index, plan=plan)
        row = replace(row, refine_scales=(scale,))
        logits, _ = self.runner.score(row, 1)
        reads = self.runner.execute(StepBatch((row,))).rows[0].ffn_reads
        assert reads is not None
        return logits, reads

    def observe(self, answer: Sequence[int]) -> tuple[Floats, LocalStatistics]:
        """`force` without a plan, and the statistics of the answer alone."""
        return self._collect(answer, start=self._num_prompt_tokens, num_logits=len(answer))

    def _collect(self, tokens: Sequence[int], *, start: int, num_logits: int) -> tuple[Floats, LocalStatistics]:
        logits, statistics = self.runner.score(self._row(tokens, start, collect=True), num_logits)
        assert statistics is not None
        return logits, statistics

    def _row(
        self,
        tokens: Sequence[int],
        start: int,
        *,
        plan: SparsityPlan | None = None,
        scales: Sequence[float] = (),
        collect: bool = False,
    ) -> StepRow:
        if start + len(tokens) > self._max_tokens:
            raise ConfigurationError(
                f"the scorer has room for {self._max_tokens} tokens, prompt and answer have {start + len(tokens)}"
            )
        return StepRow(
            sequence_id=_SEQUENCE,
            token_ids=tuple(tokens),
            start=start,
            block_table=self._block_table,
            plan=plan,
            collect_statistics=collect,
            refine_scales=tuple(scales),
            num_prompt_tokens=self._num_prompt_tokens,
        )
