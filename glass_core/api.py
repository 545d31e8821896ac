"""The contract between the server and the engine: small frozen dataclasses and one Protocol, no heavy import.

The engine speaks token ids only; text belongs to the server. Every accepted request ends in exactly one
`TokenEvent` whose `finish` is set, or with an `EngineError` raised from its stream.
All times are `time.monotonic()` seconds of one process.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from glass_core.errors import InvalidRequestError
from glass_core.expected_kl import ExpectedKlTables

MAX_SPARSITY = 0.95
DENSE_METHOD = "dense"


class FinishReason(StrEnum):
    """Why a sequence ended. STOP and LENGTH reach clients; ABORTED only reaches metrics."""

    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. Penalties follow OpenAI (presence, frequency:
    subtracted from the logits of tokens already generated) and CTRL (repetition: arXiv 1909.05858, over prompt and
    generated tokens). `seed` is always set by the caller (a random one when the client gave none): the draw of
    token *i* depends on (seed, i) alone, so it survives preemption and does not depend on the batch.
    `stop_token_ids` end the sequence, unless `ignore_eos`; before `min_tokens` they cannot be drawn. `logit_bias` is
    added to the logits of these tokens: (token id, bias) pairs of distinct ids. `num_logprobs` asks for the drawn
    token's log-probability and for those of that many most probable tokens; None = for none of them.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class SparsityParams:
    """What the client asked of GLASS: the share of FFN neurons to skip, the weight of the global ranking (None = the
    profile's own or 0.5), the selection method, the budget profile, a seed (only `random` uses it), and whether each
    token chooses among all neurons (refinement; method and lambda have nothing left to choose then).

    For the report: `max_kl` is the bound that `sparsity` was chosen by (None: it was asked for as a number),
    `expected_kl` what such answers lost when the model was calibrated (None: not measured)."""

    sparsity: float = 0.0
    lambda_: float | None = None
    method: str = "a_glass"
    profile: str = "uniform"
    seed: int = 0
    refine: bool = False
    max_kl: float | None = None
    expected_kl: float | None = None

    @property
    def density(self) -> float:
        return 1.0 - self.sparsity

    @property
    def is_dense(self) -> bool:
        return self.sparsity == 0.0 or self.method == DENSE_METHOD

    def check_lambda(self) -> None:
        """Raises InvalidRequestError for a lambda with refinement, which would have no effect."""
        if self.refine and self.lambda_ is not None:
            raise InvalidRequestError(
                "lambda weighs the rankings of static selection, and refined answers have none; leave out lambda, or "
                "set glass_refine to false",
                param="lambda",
            )


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. Immutable; what was asked.

    Only requests of the same `cache_salt` (None is one too) reuse each other's prompts in the prefix cache.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    sparsity: SparsityParams
    arrival_time: float
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Timestamps of one sequence. `first_scheduled` and `first_token` are None when it ended before them."""

    arrival: float
    finished: float
    first_scheduled: float | None = None
    prefill_finished: float | None = None
    first_token: float | None = None

    @property
    def queue_seconds(self) -> float | None:
        return None if self.first_scheduled is None else self.first_scheduled - self.arrival

    @property
    def prefill_seconds(self) -> float | None:
        if self.first_scheduled is None or self.prefill_finished is None:
            return None
        return self.prefill_finished - self.first_scheduled

    @property
    def decode_seconds(self) -> float | None:
        return None if self.first_token is None else self.finished - self.first_token

    @property
    def ttft_seconds(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def e2e_seconds(self) -> float:
        return self.finished - self.arrival


@dataclass(frozen=True, slots=True)
class StepCost:
    """Work really executed, next to what the same steps would have cost otherwise. FLOPs count a multiply-add as two.

    `*_dense` is the dense model on the same tokens; `*_computed` is what ran; `*_planned` is what each row's plan alone
    would have cost. A runner that computes a batch's rows over the same neurons executes more than planned. Bytes
    that rows read together are shared between them in all three counts. Adds up: `a + b`.
    """

    flops_dense: int = 0
    flops_computed: int = 0
    ffn_flops_dense: int = 0
    ffn_flops_computed: int = 0
    ffn_bytes_dense: int = 0
    ffn_bytes_computed: int = 0
    ffn_flops_planned: int = 0
    ffn_bytes_planned: int = 0

    def __add__(self, other: "StepCost") -> "StepCost":
        return StepCost(
            self.flops_dense + other.flops_dense,
            self.flops_computed + other.flops_computed,
            self.ffn_flops_dense + other.ffn_flops_dense,
            self.ffn_flops_computed + other.ffn_flops_computed,
            self.ffn_bytes_dense + other.ffn_bytes_dense,
            self.ffn_bytes_computed + other.ffn_bytes_computed,
            self.ffn_flops_planned + other.ffn_flops_planned,
            self.ffn_bytes_planned + other.ffn_bytes_planned,
        )

    @property
    def flops_saved(self) -> int:
        return self.flops_dense - self.flops_computed

    @property
    def flops_planned(self) -> int:
        """Plans only concern the FFN: all else is what ran."""
        return self.flops_computed - self.ffn_flops_computed + self.ffn_flops_planned


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """What GLASS really did for one sequence. `lambda_` is None where nothing is fused: by some methods, with `refine`,
    and for a dense plan.

    `sparsity` is the effective one: 1 - kept neurons / all neurons, and with `refine` 1 - the mean share of FFN weights
    that the decoded tokens read. `cost` covers the whole request, prefill included.
    `global_overlap` is the share of the plan's neurons that the global ranking alone would also have kept.
    `max_kl` and `expected_kl` are those of the request's parameters.
    """

    method: str
    sparsity_requested: float
    sparsity: float
    lambda_: float | None
    profile: str
    cost: StepCost
    selection_seconds: float
    global_overlap: float | None = None
    refine: bool = False
    max_kl: float | None = None
    expected_kl: float | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The terminal part of the last event. `num_cached_tokens` of the prompt came from the prefix cache."""

    reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int
    timings: RequestTimings
    report: SparsityReport
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before penalties, bias, temperature and filters: the drawn
    token's, and the most probable tokens' as (token id, log-probability), descending, ties by ascending id."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One hand-over for one sequence: a new token, or its end, or both. `time` is when the step that made it ended.
    `logprobs` are the token's, when the request asked for them."""

    request_id: str
    time: float
    token_id: int | None = None
    finish: Finish | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the loaded engine is. Fixed for its life.

    `methods` are the selection methods it can serve, `profiles` the budget profiles, `default_profile` the best of
    them; `refinement` maps the profiles that can be refined to the largest sparsity this is measured for;
    `expected_kl` tells by profile and method what answers lose;
    `unavailable_methods` maps a known method to why it cannot be served. `notes` lists missing capabilities worth
    telling (shown by `/version`). `isa` is the instruction set of the runner's kernels (None: not its own, as torch's),
    `num_threads` how many threads a step computes with, `kv_cache_dtype` how keys and values are stored (None:
    unknown).
    """

    model_name: str
    fingerprint: str
    runner: str
    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    num_layers: int
    intermediate_size: int
    num_parameters: int
    methods: tuple[str, ...]
    profiles: tuple[str, ...]
    unavailable_methods: Mapping[str, str] = field(default_factory=dict)
    artifact: str | None = None
    default_profile: str = "uniform"
    refinement: Mapping[str, float] = field(default_factory=dict)
    expected_kl: ExpectedKlTables = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    isa: str | None = None
    num_threads: int | None = None
    kv_cache_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for `/metrics`. Counters only grow; `cost_by_method` is keyed by selection method (`dense` too).

    `kv_blocks_used` counts blocks that requests hold, not those kept for the prefix cache. `num_prompt_tokens` counts
    prompts whole, whatever was cached. `prefix_cache_queries` and `prefix_cache_hits` count prompt tokens.
    """

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    view_bytes_used: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_steps: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    cost_by_method: Mapping[str, StepCost] = field(default_factory=dict)


class EngineClient(Protocol):
    """The server's only view of an engine. All methods are called from the event loop's thread."""

    @property
    def info(self) -> EngineInfo: ...

    def stats(self) -> EngineStats: ...

    def check_health(self) -> None:
        """Raise EngineUnavailableError when the engine thread is dead."""

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Queue a request and return its event stream; closing the stream early aborts the sequence, a read that is
        cancelled leaves it as it was.

        Raises before anything is queued: InvalidRequestError, ContextLengthError, MissingStatisticsError,
        QueueFullError, EngineUnavailableError. The stream raises EngineFailureError when a step fails.
        """
        ...

    def finish(self, request_id: str, reason: FinishReason) -> None:
        """End a running sequence at the next step boundary; its stream still delivers the terminal event.

        Unknown or already finished ids are ignored: the sequence may have ended in the meantime.
        """

    async def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests and wait for running ones; False when some had to be aborted at the deadline."""
        ...

    async def close(self) -> None:
        """Abort what is left and stop the engine thread."""
