"""The objectives: KL(dense || cascade) of each text's answer, at equal FFN reads, and their gradients.

A server holds every request's reads at the promise by scaling all thresholds of the request together. So here: a text's
thresholds are shared logarithms plus a shift of its own, found such that its reads are what was asked. Gradients are
taken along that constraint: with read slopes r, moving one logarithm moves the shift by -r / sum(r).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.offline.calibrate.local_errors import ScoreWeights
from glass_core.offline.divergence import token_kl
from glass_core.offline.tune.cascade import CascadeFfn
from glass_core.offline.tune.domains import TuningText
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.model import TorchModel

# A shift is moved by at most this much at a time: slopes are local.
_MAX_MOVE = 0.5
_TOLERANCE = 1e-3
_MAX_ROUNDS = 4


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

    `gradients` (num_texts, 2, num_layers): of log KL with respect to the logarithms of up and down thresholds at
    constant reads; None where none were asked for.
    """

    kl: Tensor
    reads: Tensor
    moves: Tensor
    gradients: Tensor | None = None


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
    """Several texts that are run together, each under its own thresholds."""

    def __init__(self, model: TorchModel, weights: ScoreWeights, texts: Sequence[DenseText]) -> None:
        self._model, self._weights, self._texts = model, weights, texts
        self._lengths = [len(text.token_ids) for text in texts]
        self._token_ids = torch.cat([text.token_ids for text in texts])
        self._positions = torch.cat([torch.arange(text.start, text.start + len(text.token_ids)) for text in texts])
        self._text_of_row = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(self._lengths))
        self._hidden = torch.cat([text.hidden for text in texts])

    def __len__(self) -> int:
        return len(self._texts)

    @torch.no_grad()
    def measure(self, logs: Tensor, shifts: Tensor, reads: float, *, width: float) -> Measured:
        """Under thresholds exp(logs + shift), `logs` (2, num_layers), `shifts` (num_texts,)."""
        thresholds = (logs[None] + shifts[:, None, None]).float()
        ffn = CascadeFfn(self._model, self._weights, thresholds, self._text_of_row, width)
        return Measured(self._mean_kl(ffn), ffn.reads, _moves(ffn, reads))

    def differentiate(self, logs: Tensor, shifts: Tensor, reads: float, *, width: float) -> Measured:
        """As `measure`, with gradients."""
        thresholds = (logs[None] + shifts[:, None, None]).float().requires_grad_()
        ffn = CascadeFfn(self._model, self._weights, thresholds, self._text_of_row, width)
        with torch.enable_grad():
            kl = self._mean_kl(ffn)
            (raw,) = torch.autograd.grad(kl.sum(), thresholds)
        kl = kl.detach()
        relative = raw.double() / kl.clamp(min=1e-9)[:, None, None]
        return Measured(kl, ffn.reads, _moves(ffn, reads), along_constant_reads(relative, ffn.slopes))

    def at_reads(self, logs: Tensor, shifts: Tensor, reads: float, *, width: float) -> tuple[Measured, Tensor]:
        """Measured where every text reads what was asked within a thousandth (a few rounds), and the shifts."""
        measured = self.measure(logs, shifts, reads, width=width)
        for _ in range(_MAX_ROUNDS - 1):
            if float((measured.reads - reads).abs().max()) <= _TOLERANCE:
                break
            shifts = shifts + measured.moves
            measured = self.measure(logs, shifts, reads, width=width)
        return measured, shifts

    def _mean_kl(self, ffn: CascadeFfn) -> Tensor:
        hidden = self._model.forward(self._token_ids, self._positions, attention=self._attention(), ffn=ffn)
        with torch.no_grad():
            dense = torch.log_softmax(self._model.logits(self._hidden), dim=-1)
        kl = token_kl(dense, torch.log_softmax(self._model.logits(hidden), dim=-1))
        return torch.stack([part.double().mean() for part in torch.split(kl, self._lengths)])

    def _attention(self) -> "_TextsAttention":
        return _TextsAttention([text.cache.fork() for text in self._texts], self._lengths)


class _TextsAttention:
    """Attention of several texts laid end to end, each over its own past. An `Attention`."""

    def __init__(self, caches: Sequence[SequenceCache], lengths: list[int]) -> None:
        self._caches, self._lengths = caches, lengths

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (torch.split(part, self._lengths) for part in (q, k, v))
        return torch.cat([cache(layer, *own) for cache, *own in zip(self._caches, *parts, strict=True)])


def along_constant_reads(gradients: Tensor, slopes: Tensor) -> Tensor:
    """Gradients (num_texts, 2, num_layers) when a common shift undoes what a move does to the reads."""
    total = slopes.sum(dim=(1, 2), keepdim=True)
    share = torch.where(total != 0, slopes / torch.where(total != 0, total, 1.0), 0.0)
    return gradients - share * gradients.sum(dim=(1, 2), keepdim=True)


def _moves(ffn: CascadeFfn, reads: float) -> Tensor:
    """Newton's step of every text's shift towards the reads."""
    slope = ffn.slopes.sum(dim=(1, 2))
    move = torch.where(slope < 0, (reads - ffn.reads) / torch.where(slope < 0, slope, -1.0), 0.0)
    return move.clamp(-_MAX_MOVE, _MAX_MOVE)
