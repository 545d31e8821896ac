"""Causal attention of one sequence's tokens over its keys: grouped heads, sliding window, exact rectangle.

The two products are explicit batched matrix products, so that the executed FLOPs are what `flops.row_cost` says: the
whole rectangle is computed and then masked, window or not. Softmax runs in float32.

Two homes for keys and values: `SequenceCache` grows tensors of one sequence and keeps autograd working (offline tools);
`PagedAttention` serves the rows of one step from the block pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.models.spec import ModelSpec
from glass_core.runners.torch_runner.kv_pool import KVPool


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """softmax(scale * q k^T) v.

    q (T, heads, head_dim), k and v (C, kv_heads, head_dim), `visible` (T, C) bool or None = everything.
    Returns (T, heads * head_dim). Query head i reads key head i // (heads / kv_heads).
    """
    num_tokens, num_heads, head_dim = q.shape
    num_keys, num_kv_heads = k.shape[:2]
    group = num_heads // num_kv_heads
    scaled = (q * scale).contiguous()
    grouped = scaled.view(num_tokens, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    scores = torch.bmm(grouped.reshape(num_kv_heads, group * num_tokens, head_dim), k.permute(1, 2, 0))
    if visible is not None:
        rectangle = scores.view(num_kv_heads, group, num_tokens, num_keys)
        scores = rectangle.masked_fill(~visible, -torch.inf).view_as(scores)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    mixed = torch.bmm(weights, v.transpose(0, 1))
    return mixed.view(num_kv_heads, group, num_tokens, head_dim).permute(2, 0, 1, 3).reshape(num_tokens, -1)


def visible_keys(start: int, num_tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which of keys 0 … start + num_tokens - 1 each token at start, start + 1, … may see: (T, C) bool, None = all.

    A window of w covers the token itself and the w - 1 before it (HF's convention).
    """
    num_keys = start + num_tokens
    if num_tokens == 1 and (window is None or num_keys <= window):
        return None
    keys = torch.arange(num_keys, device=device)
    queries = keys[start:, None]
    causal = keys <= queries
    return causal if window is None else causal & (keys > queries - window)


class VisibilityMasks:
    """The masks of one (start, num_tokens), one per distinct window of the model, made on first use."""

    def __init__(self, spec: ModelSpec, start: int, num_tokens: int, device: torch.device) -> None:
        self._windows = spec.sliding_window
        self._by_window = {
            window: visible_keys(start, num_tokens, window, device) for window in set(spec.sliding_window)
        }

    def of_layer(self, layer: int) -> Tensor | None:
        return self._by_window[self._windows[layer]]


class SequenceCache:
    """Attention of one sequence with growing keys and values: call the model on the prompt, then on continuations.

    Nothing is written in place, so gradients flow, and forks share what they have in common.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._keys: list[Tensor | None] = [None] * spec.num_layers
        self._values: list[Tensor | None] = [None] * spec.num_layers
        self._masks: tuple[tuple[int, int], VisibilityMasks] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that every layer holds: the position of the next one."""
        last = self._keys[-1]
        return 0 if last is None else len(last)

    def fork(self) -> "SequenceCache":
        """A cache with the same past that grows on its own; the past is shared, not copied."""
        fork = SequenceCache(self._spec)
        fork._keys, fork._values = list(self._keys), list(self._values)
        return fork

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past_keys, past_values = self._keys[layer], self._values[layer]
        keys = k if past_keys is None else torch.cat((past_keys, k))
        values = v if past_values is None else torch.cat((past_values, v))
        self._keys[layer], self._values[layer] = keys, values
        masks = self._masks_of(len(keys) - len(q), len(q), q.device)
        return attend(q, keys, values, masks.of_layer(layer), self._spec.score_scale)

    def _masks_of(self, start: int, num_tokens: int, device: torch.device) -> VisibilityMasks:
        if self._masks is None or self._masks[0] != (start, num_tokens):
            self._masks = ((start, num_tokens), VisibilityMasks(self._spec, start, num_tokens, device))
        return self._masks[1]


class JoinedCaches:
    """Attention of several sequences laid end to end, `lengths[i]` tokens of the i-th, each over its own cache."""

    def __init__(self, caches: Sequence[SequenceCache], lengths: Sequence[int]) -> None:
        self._caches, self._lengths = caches, list(lengths)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (torch.split(part, self._lengths) for part in (q, k, v))
        return torch.cat([cache(layer, *own) for cache, *own in zip(self._caches, *parts, strict=True)])


@dataclass(frozen=True, slots=True)
class RowPages:
    """Where one row of a step sits: its tokens in the step, the pool slots of all its keys (C,), its masks."""

    tokens: slice
    slots: Tensor
    masks: VisibilityMasks


class PagedAttention:
    """Attention of all rows of one step: write every token's key and value into the pool, then attend row by row."""

    def __init__(self, pool: KVPool, rows: Sequence[RowPages], scale: float) -> None:
        """`scale` multiplies the scores."""
        self._pool = pool
        self._scale = scale
        self._rows = rows
        # a row's own tokens are the last of its keys
        self._new_slots = torch.cat([row.slots[row.tokens.start - row.tokens.stop :] for row in rows])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._pool.write(layer, self._new_slots, k, v)
        outputs = []
        for row in self._rows:
            keys, values = self._pool.read(layer, row.slots)
            outputs.append(attend(q[row.tokens], keys, values, row.masks.of_layer(layer), self._scale))
        return torch.cat(outputs)
