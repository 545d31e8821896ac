"""How far one model's predictions are from another's."""

import torch
from torch import Tensor


def token_kl(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference || other) per token in nats, (n,), of log-probabilities (n, vocab)."""
    return (reference.exp() * (reference - other)).sum(dim=-1)


def perplexity(total_nll: float, num_tokens: int) -> float:
    """exp of the mean negative log-likelihood; infinite when it overflows."""
    return float(torch.tensor(total_nll / num_tokens, dtype=torch.float64).exp())
