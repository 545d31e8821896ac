"""Scores by position in the answer: what longer generations cost, from one run.

The first N tokens of an answer are the answer that would have been sampled with max_new_tokens N: a draw depends on
the seed and its position alone. So one run with the longest answers scores all lengths.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.scores import Divergence


def length_sweep(found: Sequence[Divergence], lengths: Sequence[int], bootstrap: Bootstrap) -> dict[str, Any]:
    """Of one condition's answers, scored from their second token on: `answer_lengths`, over the tokens before each
    length, and `answer_spans`, over those between neighboring lengths. Nothing for fewer than two lengths."""
    if len(set(lengths)) < 2:
        return {}
    ends = sorted(set(lengths))
    return {
        "answer_lengths": [_span(found, 0, end, bootstrap) for end in ends],
        "answer_spans": [_span(found, first, end, bootstrap) for first, end in pairwise([0, *ends])],
    }


def _span(found: Sequence[Divergence], first: int, end: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Means over answer tokens first ... end - 1 of all answers that are so long; None where no answer is."""
    parts = [divergence.span(max(first - 1, 0), end - 1) for divergence in found]
    num_tokens = [len(part.agrees) for part in parts]
    total = sum(num_tokens)
    row: dict[str, Any] = {
        "first": first,
        "end": end,
        "num_answers": sum(count > 0 for count in num_tokens),
        "num_tokens": total,
    }
    for name, sums in (("kl", [part.kl for part in parts]), ("agreement", [part.num_agreeing for part in parts])):
        row[name] = sum(sums) / total if total else None
        row[f"{name}_interval"] = bootstrap.interval(sums, num_tokens)
    return row
