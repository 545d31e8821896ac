"""What the extension has to know to draw each row's next token. Histories for penalties grow by a token a step; they
are not made anew."""

from collections.abc import Iterable, Sequence

import numpy as np

from glass_core.runners.base import SampleInput
from glass_core.runners.native.types import Adjustments, Floats, Indices, SampleRequest
from glass_core.runners.sampling import NOT_FINITE, NOTHING_LEFT, SEED_MASK, adjusts_logits

# by the extension's number of the problem; 0 is none
DRAW_PROBLEMS = ("", NOT_FINITE, NOTHING_LEFT)
_HALF_SEED = (1 << 64) - 1
_NO_IDS: Indices = np.empty(0, np.int32)
_NO_VALUES: Floats = np.empty(0, np.float32)


class TokenCounts:
    """Distinct tokens of a prompt and a growing answer, and how often the answer has each."""

    def __init__(self, prompt_token_ids: Sequence[int], generated_token_ids: Sequence[int], vocab_size: int) -> None:
        self._prompt = prompt_token_ids
        self._generated = generated_token_ids
        self._vocab_size = vocab_size
        self._num_taken = 0
        distinct = [token for token in dict.fromkeys(prompt_token_ids) if self._is_known(token)]
        self._slots = {token: slot for slot, token in enumerate(distinct)}
        self._ids: Indices = np.array(distinct, np.int32)
        self._counts: Indices = np.zeros(len(distinct), np.int32)

    def belongs_to(self, sample: SampleInput) -> bool:
        """Whether these are the counts of the sample's own prompt and answer, up to tokens added since."""
        return self._prompt is sample.prompt_token_ids and self._generated is sample.generated_token_ids

    def update(self) -> tuple[Indices, Indices]:
        """Token ids and counts, the answer's new tokens included. Valid until the next update."""
        for token in self._generated[self._num_taken :]:
            if self._is_known(token):
                slot = self._slot(token)  # first: it may replace the arrays
                self._counts[slot] += 1
        self._num_taken = len(self._generated)
        return self._ids[: len(self._slots)], self._counts[: len(self._slots)]

    def _is_known(self, token: int) -> bool:
        return 0 <= token < self._vocab_size

    def _slot(self, token: int) -> int:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            room = max(slot, 16)
            self._ids = np.concatenate([self._ids, np.zeros(room, np.int32)])
            self._counts = np.concatenate([self._counts, np.zeros(room, np.int32)])
        self._ids[slot] = token
        return slot


class SampleRequests:
    """Requests of a model's rows. Keeps token counts of the sequences that need them until they are released."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._counts: dict[str, TokenCounts] = {}

    def request(self, sequence_id: str, sample: SampleInput) -> SampleRequest:
        """The row's request as the extension takes it; valid until the sequence's next one."""
        params = sample.params
        adjusts = adjusts_logits(sample)
        if params.temperature == 0.0 and not adjusts and params.num_logprobs is None:
            return None
        seed = params.seed & SEED_MASK
        return (
            params.temperature,
            min(params.top_k, self._vocab_size),
            params.top_p,
            params.min_p,
            (seed & _HALF_SEED, seed >> 64),
            len(sample.generated_token_ids),
            -1 if params.num_logprobs is None else min(params.num_logprobs, self._vocab_size),
            self._adjustments(sequence_id, sample) if adjusts else None,
        )

    def release(self, sequence_id: str) -> None:
        """Forget the sequence's counts; unknown ids are fine."""
        self._counts.pop(sequence_id, None)

    def _adjustments(self, sequence_id: str, sample: SampleInput) -> Adjustments:
        params = sample.params
        penalties = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        seen = (_NO_IDS, _NO_IDS) if penalties == (1.0, 0.0, 0.0) else self._seen(sequence_id, sample)
        biases = [(token, bias) for token, bias in params.logit_bias if 0 <= token < self._vocab_size]
        is_early = len(sample.generated_token_ids) < params.min_tokens
        return (
            *penalties,
            *seen,
            _ids(token for token, _ in biases),
            np.array([bias for _, bias in biases], np.float32) if biases else _NO_VALUES,
            _ids(token for token in params.stop_token_ids if 0 <= token < self._vocab_size) if is_early else _NO_IDS,
        )

    def _seen(self, sequence_id: str, sample: SampleInput) -> tuple[Indices, Indices]:
        counts = self._counts.get(sequence_id)
        if counts is None or not counts.belongs_to(sample):
            counts = TokenCounts(sample.prompt_token_ids, sample.generated_token_ids, self._vocab_size)
            self._counts[sequence_id] = counts
        return counts.update()


def _ids(tokens: Iterable[int]) -> Indices:
    return np.fromiter(tokens, np.int32)
