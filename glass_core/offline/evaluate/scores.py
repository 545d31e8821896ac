"""What is kept of a condition's predictions, and the row of the result that comes of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.offline.divergence import perplexity, token_kl
from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.conditions import condition_json


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """From a reference's predictions on one answer, per token (n,): KL in nats, whether the best tokens are equal."""

    token_kl: npt.NDArray[np.float64]
    agrees: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, reference: Tensor, other: Tensor) -> "Divergence":
        """Of log-probabilities (n, vocab)."""
        same = other.argmax(dim=-1) == reference.argmax(dim=-1)
        return cls(token_kl(reference, other).double().cpu().numpy(), same.cpu().numpy())

    @property
    def kl(self) -> float:
        """Sum over the tokens."""
        return float(self.token_kl.sum())

    @property
    def num_agreeing(self) -> int:
        return int(self.agrees.sum())

    def span(self, start: int, end: int) -> "Divergence":
        """That of the tokens start ... end - 1, as many of them as there are."""
        return Divergence(self.token_kl[start:end], self.agrees[start:end])


@dataclass(frozen=True, slots=True, eq=False)
class AnswerScore:
    """Sums over one answer's scored tokens; `nll` in nats; `ffn_reads` is the share of FFN weights read per token.

    `from_dense` is the distance from the dense reference, `from_twin` that from the reference model under the same
    condition (None where the reference itself is scored).
    """

    num_tokens: int
    nll: float
    ffn_reads: float
    from_dense: Divergence
    from_twin: Divergence | None = None


def score_predictions(
    log_probs: Tensor, targets: Tensor, ffn_reads: float, *, dense: Tensor, twin: Tensor | None = None
) -> AnswerScore:
    """Score predictions (n, vocab) of targets (n,) made with this share of FFN weights read against those of the dense
    reference, and of the reference under the same condition."""
    return AnswerScore(
        num_tokens=len(targets),
        nll=total_nll(log_probs, targets),
        ffn_reads=ffn_reads,
        from_dense=Divergence.of(dense, log_probs),
        from_twin=None if twin is None else Divergence.of(twin, log_probs),
    )


def total_nll(log_probs: Tensor, targets: Tensor) -> float:
    """Negative log-likelihood of the targets (n,), summed, in nats."""
    return -float(log_probs.gather(1, targets[:, None]).sum())


@dataclass(slots=True)
class ConditionScore:
    """The scores of all answers under one condition, on one runner. `lambda_` is the one in effect, None when nothing
    is fused. `twin` is the same condition on the reference model, None for that itself."""

    params: SparsityParams
    lambda_: float | None
    runner: str
    dtype: str
    twin: "ConditionScore | None" = None
    answers: list[AnswerScore] = field(default_factory=list)

    def row(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """The result's row: token-weighted means and their intervals. `sparsity` is the requested one, `ffn_reads` what
        was kept."""
        return {
            "runner": self.runner,
            "dtype": self.dtype,
            **condition_json(self.params, self.lambda_),
            **perplexity_of([score.nll for score in self.answers], self.num_tokens, bootstrap),
            **self._mean("kl", self._kl(), bootstrap),
            **self._mean("agreement", [score.from_dense.num_agreeing for score in self.answers], bootstrap),
            **self._from_twin(bootstrap),
            "ffn_reads": sum(s.ffn_reads * s.num_tokens for s in self.answers) / sum(self.num_tokens),
            "num_tokens": sum(self.num_tokens),
            "answers": self._sums(),
        }

    def _sums(self) -> dict[str, Any]:
        """Per answer, in nats: what conditions are compared by, answer by answer."""
        return {
            "num_tokens": self.num_tokens,
            "nll": [score.nll for score in self.answers],
            "kl": self._kl(),
        }

    @property
    def num_tokens(self) -> list[int]:
        """Per answer."""
        return [score.num_tokens for score in self.answers]

    def _kl(self) -> list[float]:
        return [score.from_dense.kl for score in self.answers]

    def _from_twin(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """What the runner adds to what the condition costs on the reference model."""
        if self.twin is None:
            return {}
        same = [score.from_twin for score in self.answers if score.from_twin is not None]
        change = [mine - theirs for mine, theirs in zip(self._kl(), self.twin._kl(), strict=True)]
        return {
            **self._mean("kl_same_condition", [divergence.kl for divergence in same], bootstrap),
            **self._mean("agreement_same_condition", [divergence.num_agreeing for divergence in same], bootstrap),
            **self._mean("kl_change", change, bootstrap),
        }

    def _mean(self, name: str, sums: Sequence[float], bootstrap: Bootstrap) -> dict[str, Any]:
        interval = bootstrap.interval(sums, self.num_tokens)
        return {name: sum(sums) / sum(self.num_tokens), f"{name}_interval": interval}


def perplexity_of(nll: Sequence[float], num_tokens: Sequence[int], bootstrap: Bootstrap) -> dict[str, Any]:
    """`ppl` and its interval, of sums per answer."""
    interval = bootstrap.interval(nll, num_tokens)
    bounds = None if interval is None else tuple(math.exp(bound) for bound in interval)
    return {"ppl": perplexity(sum(nll), sum(num_tokens)), "ppl_interval": bounds}
