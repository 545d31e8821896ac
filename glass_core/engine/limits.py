"""Limits: what one request may ask of this engine. Checked before anything is queued, so nothing can wait forever."""

from collections.abc import Iterable
from dataclasses import dataclass

from glass_core.api import GenerationRequest
from glass_core.config import EngineConfig
from glass_core.errors import ConfigurationError, ContextLengthError, InvalidRequestError
from glass_core.runners.base import Runner


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_model_len` counts prompt and generated tokens; `kv_positions` is the capacity of the whole KV pool."""

    max_model_len: int
    vocab_size: int
    kv_positions: int
    view_cache_bytes: int

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequestError or ContextLengthError for a request that can never be served."""
        self._check_tokens(request)
        num_prompt, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
        if max_tokens < 1:
            raise InvalidRequestError(f"max_tokens must be at least 1, got {max_tokens}", param="max_tokens")
        if num_prompt + max_tokens > self.max_model_len:
            raise ContextLengthError(
                f"the context holds {self.max_model_len} tokens, but the prompt has {num_prompt} and max_tokens asks "
                f"for {max_tokens} more; shorten the prompt or lower max_tokens",
                param="max_tokens",
            )
        # The last token's own keys and values are never needed.
        if num_prompt + max_tokens - 1 > self.kv_positions:
            raise InvalidRequestError(
                f"the KV cache holds {self.kv_positions} tokens, but the prompt has {num_prompt} and max_tokens asks "
                f"for {max_tokens} more; lower max_tokens or give the server more KV memory",
                param="max_tokens",
            )

    def check_view_bytes(self, view_bytes: int) -> None:
        """Raise InvalidRequestError for weight views larger than their whole budget."""
        if view_bytes > self.view_cache_bytes:
            raise InvalidRequestError(
                f"the weight views of this sparsity need {view_bytes} bytes, the server's budget for them is "
                f"{self.view_cache_bytes}; ask for a higher sparsity, or for 0 (dense, no views)",
                param="glass_sparsity",
            )

    def _check_tokens(self, request: GenerationRequest) -> None:
        if not request.prompt_token_ids:
            raise InvalidRequestError("the prompt is empty: at least one token is needed", param="prompt")
        self._check_vocabulary(request.prompt_token_ids, "prompt")
        self._check_vocabulary(request.sampling.stop_token_ids, "stop_token_ids")
        self._check_vocabulary((token_id for token_id, _ in request.sampling.logit_bias), "logit_bias")

    def _check_vocabulary(self, token_ids: Iterable[int], param: str) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequestError(
                    f"{param}: token id {token_id} is not in the vocabulary (0 … {self.vocab_size - 1})", param=param
                )


def limits_of(runner: Runner, config: EngineConfig) -> Limits:
    """Limits of a loaded runner. Without `config.max_model_len` the context is the model's, or what the KV pool holds.

    Raises ConfigurationError when the configured length is out of the model's range.
    """
    kv_positions = runner.num_kv_blocks * config.cache.block_size
    longest = runner.spec.max_position_embeddings
    asked = config.max_model_len
    if asked is not None and not 1 <= asked <= longest:
        raise ConfigurationError(f"max_model_len must be between 1 and the model's {longest}, got {asked}")
    if kv_positions < 1:
        raise ConfigurationError(
            f"kv_cache_bytes ({config.cache.kv_cache_bytes}) is less than one block of {config.cache.block_size} tokens"
        )
    return Limits(
        max_model_len=min(longest, kv_positions) if asked is None else asked,
        vocab_size=runner.spec.vocab_size,
        kv_positions=kv_positions,
        view_cache_bytes=config.cache.view_cache_bytes,
    )
