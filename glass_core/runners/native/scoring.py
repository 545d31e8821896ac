"""Teacher forcing on the native runner: what it predicts along a given text, under any plan. For measuring only.

The prompt runs densely once, as in the server, and its keys and values stay: every plan is then forced through the same
answer after the same prompt. An answer goes through in one step, which gives the same bits as one token at a time (the
runner promises it), at prefill speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from glass_core.config import KV_CACHE_DTYPES, CacheConfig
from glass_core.errors import ConfigurationError
from glass_core.runners.base import StepRow
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
        num_blocks = _num_blocks(max_tokens)
        self.runner = _runner(header, num_blocks, num_threads, kv_cache_dtype)
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


@dataclass(frozen=True, slots=True, eq=False)
class ForcedText:
    """A prompt, the answer's tokens to go through, and the refined plan that they do so under."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    plan: SparsityPlan


class NativeRowScorer:
    """Scores texts side by side, one token of each per step. Owns a runner with room for all of them."""

    def __init__(self, header: ImageHeader, texts: Sequence[ForcedText], *, num_threads: int | None = None) -> None:
        """Runs all prompts densely."""
        self._texts = texts
        self._tables: list[tuple[int, ...]] = []
        num_blocks = 0
        for text in texts:
            end = num_blocks + _num_blocks(len(text.prompt) + len(text.answer))
            self._tables.append(tuple(range(num_blocks, end)))
            num_blocks = end
        self._runner = _runner(header, num_blocks, num_threads, KV_CACHE_DTYPES[0])
        for number, text in enumerate(texts):
            self._runner.score(self._row(number, text.prompt, start=0), 0)

    def __enter__(self) -> "NativeRowScorer":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def step(self, index: int, numbers: Sequence[int], scales: Sequence[float]) -> tuple[Floats, list[float]]:
        """Logits (len(numbers), vocab_size) after token `index` of the answers of these texts, their thresholds scaled
        by these factors, and the share of FFN weights that each token reads. All tokens before it must have run."""
        rows = [self._token(number, index, scale) for number, scale in zip(numbers, scales, strict=True)]
        return self._runner.score_refined(rows)

    def _token(self, number: int, index: int, scale: float) -> StepRow:
        text = self._texts[number]
        row = self._row(number, text.answer[index : index + 1], start=len(text.prompt) + index)
        return replace(row, plan=text.plan, refine_scales=(scale,))

    def _row(self, number: int, tokens: tuple[int, ...], *, start: int) -> StepRow:
        return StepRow(
            sequence_id=f"{_SEQUENCE}-{number}",
            token_ids=tokens,
            start=start,
            block_table=self._tables[number],
            num_prompt_tokens=len(self._texts[number].prompt),
        )


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // CacheConfig().block_size)


def _runner(header: ImageHeader, num_blocks: int, num_threads: int | None, kv_cache_dtype: str) -> NativeRunner:
    block_size = CacheConfig().block_size
    num_bytes = num_blocks * kv_block_bytes(header.spec, block_size, kv_cache_dtype)
    cache = CacheConfig(block_size, num_bytes, kv_cache_dtype=kv_cache_dtype)
    return NativeRunner(header, cache, num_threads=num_threads)
