"""The objectives: KL(dense || cascade) of each text's answer, at equal FFN reads, and their gradients.

A server holds every request's reads at the promise by scaling all thresholds of the request together. So here: a text's
thresholds are shared logarithms plus a shift of its own, found such that its reads are what was asked. Gradients are
taken along that constraint: with read slopes r, moving one logarithm moves the shift by -r / sum(r).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glass_core.offline.divergence import token_kl
from glass_core.offline.tune.cascade import CascadeFfn
from glass_core.offline.tune.domains import TuningText
from glass_core.offline.tune.offsets import FloatArray
from glass_core.runners.torch_runner.attention import JoinedCaches, SequenceCache
from glass_core.runners.torch_runner.cascade import StageTensors
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.refinement import ScoreWeights

# A shift is moved by at most this much at a time: slopes are local.
_MAX_MOVE = 0.5
_TOLERANCE = 1e-3
_MAX_ROUNDS = 4
# towards thresholds that are kept, from a shift that may be far away
_MAX_COMMON_ROUNDS = 16


@dataclass(frozen=True, slots=True, eq=False)
class DenseText:
    """One text as the dense model sees it: the prompt's keys and values, the final hidden states of what follows."""

    token_ids: Tensor
    start: int
    cache: SequenceCache
    hidden: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Per text: mean KL in nats per token (num_texts,), reads (num_texts,), and the shift that would correct them.

    `gradients` (num_texts, stages, num_layers): of log KL with respect to the logarithms of thresholds at constant
    reads; `curvatures`, likewise: an estimate of its second derivatives (see `curvatures`). None where none
    were asked for.
    """

    kl: Tensor
    reads: Tensor
    moves: Tensor
    gradients: Tensor | None = None
    curvatures: Tensor | None = None


@torch.no_grad()
def read_densely(model: TorchModel, text: TuningText) -> DenseText:
    """The dense pass over prompt and answer; the last token of the answer predicts nothing that was kept."""
    prompt, follows = (torch.tensor(part, device=model.device) for part in (text.prompt, text.answer[:-1]))
    cache = SequenceCache(model.spec)
    model.forward(prompt, torch.arange(len(prompt)), attention=cache, ffn=model.dense_ffn)
    past, positions = cache.fork(), torch.arange(len(prompt), len(prompt) + len(follows))
    hidden = model.forward(follows, positions, attention=cache, ffn=model.dense_ffn)
    return DenseText(follows, len(prompt), past, hidden)


class TextBatch:
    """Several texts that are run together, each under its own thresholds on scores with these weights."""

    def __init__(self, model: TorchModel, weights: ScoreWeights, texts: Sequence[DenseText]) -> None:
        self._model, self._texts = model, texts
        scores = StageTensors.of_weights(weights, model.device)
        self._log_weights = StageTensors(scores.inputs.log(), scores.down.log())
        self._lengths = [len(text.token_ids) for text in texts]
        self._token_ids = torch.cat([text.token_ids for text in texts])
        self._positions = torch.cat([torch.arange(text.start, text.start + len(text.token_ids)) for text in texts])
        self._text_of_row = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(self._lengths))

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def num_tokens(self) -> FloatArray:
        """Of every text, (num_texts,)."""
        return np.array(self._lengths, np.float64)

    def weighted(self, weights: ScoreWeights) -> "TextBatch":
        """The same texts under other weights."""
        return TextBatch(self._model, weights, self._texts)

    @torch.no_grad()
    def measure(self, logs: Tensor, shifts: Tensor, reads: float, *, width: float) -> Measured:
        """Under thresholds exp(logs + shift), `logs` (stages, num_layers), `shifts` (num_texts,)."""
        ffn, hidden = self._run(logs, shifts, width)
        return self._measured(ffn, hidden, reads)

    def differentiate(self, logs: Tensor, shifts: Tensor, reads: float, *, width: float) -> Measured:
        """As `measure`, with gradients and curvatures."""
        thresholds = self._thresholds(logs, shifts).requires_grad_()
        ffn = self._ffn(thresholds, width)
        with torch.enable_grad():
            hidden = self._forward(ffn)
            kl, slopes = self._differentiate_head(hidden.detach())
            (raw,) = torch.autograd.grad(hidden, thresholds, slopes)
        relative = raw.double() / kl.clamp(min=1e-9)[:, None, None]
        return Measured(
            kl,
            ffn.reads,
            _moves(ffn, reads),
            along_constant_reads(relative, ffn.slopes),
            curvatures(relative, ffn.slopes),
        )

    @torch.no_grad()
    def at_reads(self, logs: Tensor, shifts: Tensor, reads: float, *, width: float) -> tuple[Measured, Tensor]:
        """Measured where every text reads what was asked within a thousandth (a few rounds), and the shifts."""
        ffn, hidden, shifts = self._search(logs, shifts, reads, width)
        return self._measured(ffn, hidden, reads), shifts

    @torch.no_grad()
    def shifts_at_reads(self, logs: Tensor, shifts: Tensor, reads: float, *, width: float) -> Tensor:
        """The shifts of `at_reads` alone, without predictions."""
        return self._search(logs, shifts, reads, width)[2]

    @torch.no_grad()
    def common_shift(self, logs: Tensor, shift: float, reads: float, *, width: float) -> float:
        """One shift for all texts, from `shift` on, with which their tokens read what was asked on average, within a
        thousandth (a few rounds)."""
        share = torch.tensor(self._lengths, dtype=torch.float64) / sum(self._lengths)
        for _ in range(_MAX_COMMON_ROUNDS):
            ffn, _ = self._run(logs, torch.full((len(self),), shift, dtype=torch.float64), width)
            missing = reads - float(share @ ffn.reads)
            if abs(missing) <= _TOLERANCE:
                break
            shift += _move(missing, float(share @ ffn.slopes.sum(dim=(1, 2))))
        return shift

    def _search(self, logs: Tensor, shifts: Tensor, reads: float, width: float) -> tuple[CascadeFfn, Tensor, Tensor]:
        """What was read in the last round, its final hidden states and its shifts."""
        ffn, hidden = self._run(logs, shifts, width)
        for _ in range(_MAX_ROUNDS - 1):
            if float((ffn.reads - reads).abs().max()) <= _TOLERANCE:
                break
            shifts = shifts + _moves(ffn, reads)
            ffn, hidden = self._run(logs, shifts, width)
        return ffn, hidden, shifts

    def _run(self, logs: Tensor, shifts: Tensor, width: float) -> tuple[CascadeFfn, Tensor]:
        """What was read, and the final hidden states; predictions cost half as much again and are made when wanted."""
        ffn = self._ffn(self._thresholds(logs, shifts), width)
        return ffn, self._forward(ffn)

    def _measured(self, ffn: CascadeFfn, hidden: Tensor, reads: float) -> Measured:
        parts = torch.split(hidden, self._lengths)
        kl = [self._kl(text, own).mean() for text, own in zip(self._texts, parts, strict=True)]
        return Measured(torch.stack(kl), ffn.reads, _moves(ffn, reads))

    def _thresholds(self, logs: Tensor, shifts: Tensor) -> Tensor:
        return (logs[None] + shifts[:, None, None]).float()

    def _ffn(self, thresholds: Tensor, width: float) -> CascadeFfn:
        return CascadeFfn(self._model, self._log_weights, thresholds, self._text_of_row, width)

    def _forward(self, ffn: CascadeFfn) -> Tensor:
        attention = JoinedCaches([text.cache.fork() for text in self._texts], self._lengths)
        return self._model.forward(self._token_ids, self._positions, attention=attention, ffn=ffn)

    def _differentiate_head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean KL of every text, and its derivative with respect to the final hidden states (n, hidden).

        One text at a time: predictions of all tokens at once are what would not fit into memory.
        """
        values, slopes = [], []
        for text, own in zip(self._texts, torch.split(hidden, self._lengths), strict=True):
            leaf = own.requires_grad_()
            kl = self._kl(text, leaf).mean()
            slopes.append(torch.autograd.grad(kl, leaf)[0])
            values.append(kl.detach())
        return torch.stack(values), torch.cat(slopes)

    def _kl(self, text: DenseText, hidden: Tensor) -> Tensor:
        """KL(dense || these predictions) per token, float64."""
        with torch.no_grad():
            dense = torch.log_softmax(self._model.logits(text.hidden).float(), dim=-1)
        return token_kl(dense, torch.log_softmax(self._model.logits(hidden).float(), dim=-1)).double()


def along_constant_reads(gradients: Tensor, slopes: Tensor) -> Tensor:
    """Gradients (num_texts, stages, num_layers) when a common shift undoes what a move does to the reads."""
    total = slopes.sum(dim=(1, 2), keepdim=True)
    share = torch.where(total != 0, slopes / torch.where(total != 0, total, 1.0), 0.0)
    return gradients - share * gradients.sum(dim=(1, 2), keepdim=True)


def curvatures(gradients: Tensor, slopes: Tensor) -> Tensor:
    """Second derivatives (num_texts, stages, num_layers), each alone, from gradients not yet at constant reads.

    What one more read is worth at a threshold goes with the threshold's square, as the damage of what is skipped does.
    At the best point a read is worth the same everywhere, so all gradients are in proportion to the slopes of the
    reads, and the second derivative at constant reads is twice the gradient. The sum of the measured gradients sets the
    scale.
    """
    total = slopes.sum(dim=(1, 2), keepdim=True)
    share = torch.where(total != 0, slopes / torch.where(total != 0, total, 1.0), 0.0)
    return 2.0 * share * gradients.sum(dim=(1, 2), keepdim=True).clamp(min=0.0)


def _moves(ffn: CascadeFfn, reads: float) -> Tensor:
    """Newton's step of every text's shift towards the reads."""
    missing, slopes = (reads - ffn.reads).tolist(), ffn.slopes.sum(dim=(1, 2)).tolist()
    return torch.tensor([_move(*pair) for pair in zip(missing, slopes, strict=True)], dtype=torch.float64)


def _move(missing: float, slope: float) -> float:
    return min(max(missing / slope, -_MAX_MOVE), _MAX_MOVE) if slope < 0 else 0.0
