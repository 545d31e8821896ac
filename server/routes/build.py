"""From a checked request body to engine requests: limits, model name, sampling and sparsity parameters."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from glass_core.api import EngineInfo, GenerationRequest, SamplingParams
from glass_core.errors import InvalidRequestError, ModelNotFoundError
from server.config import Settings
from server.deps import GlassHeaders, LoadedModel
from server.generation import Choice, choice_seeds, fit_context
from server.routes.sparsity import SparsityChoice
from server.schemas.common import GenerationFields

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What all parts of one answer share."""

    id: str
    created: int
    model_name: str
    num_prompt_tokens: int
    choices_per_prompt: int
    include_usage: bool


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Makes the choices of one HTTP request. `prompt_param` is the body field that error messages name.

    Made first of all, because latencies count from `arrival_time`, templates and tokenizing included.
    """

    body: GenerationFields
    headers: GlassHeaders
    settings: Settings
    model: LoadedModel
    prompt_param: str
    arrival_time: float = field(default_factory=time.monotonic)

    def check(self, num_prompts: int) -> None:
        """Raise ModelNotFoundError for another model's name, InvalidRequestError beyond the server's limits."""
        check_model_name(self.body.model, self.model.engine.info, self.settings)
        _check_limits(self.body, self.settings, num_prompts)

    def answer(self, prefix: str, prompts: Sequence[Sequence[int]]) -> Answer:
        return Answer(
            id=f"{prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model_name=self.model.engine.info.model_name,
            num_prompt_tokens=sum(map(len, prompts)),
            choices_per_prompt=self.body.n or 1,
            include_usage=self.body.include_usage,
        )

    def choices(self, answer: Answer, prompts: Sequence[Sequence[int]]) -> list[Choice]:
        """n choices per prompt, numbered prompt by prompt. Each prompt gets the seeds it would get alone."""
        seeds = choice_seeds(self.body.seed, answer.choices_per_prompt)
        stop = tuple(self.body.stop_strings)
        return [
            Choice(index, self._request(f"{answer.id}-{index}", prompt, seed), stop)
            for index, (prompt, seed) in enumerate((prompt, seed) for prompt in prompts for seed in seeds)
        ]

    def _request(self, request_id: str, prompt: Sequence[int], seed: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=request_id,
            prompt_token_ids=tuple(prompt),
            sampling=self._sampling(len(prompt), seed),
            sparsity=SparsityChoice(self.body, self.headers, self.settings, self.model.engine.info).params(seed),
            arrival_time=self.arrival_time,
            cache_salt=self.body.cache_salt,
        )

    def _sampling(self, num_prompt: int, seed: int) -> SamplingParams:
        body = self.body
        max_model_len = self.model.engine.info.max_model_len
        max_tokens = fit_context(num_prompt, body.longest_answer, max_model_len, param=self.prompt_param)
        return SamplingParams(
            max_tokens=max_tokens,
            seed=seed,
            temperature=_default(body.temperature, 1.0),
            top_p=_default(body.top_p, 1.0),
            top_k=max(_default(body.top_k, 0), 0),
            min_p=_default(body.min_p, 0.0),
            min_tokens=min(_default(body.min_tokens, 0), max_tokens),
            presence_penalty=_default(body.presence_penalty, 0.0),
            frequency_penalty=_default(body.frequency_penalty, 0.0),
            repetition_penalty=_default(body.repetition_penalty, 1.0),
            stop_token_ids=self.model.text.stop_token_ids,
            ignore_eos=bool(body.ignore_eos),
            logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
            num_logprobs=body.num_logprobs,
        )


def check_model_name(name: str | None, info: EngineInfo, settings: Settings) -> None:
    """Raise ModelNotFoundError unless `name` is absent, the served model, one of its aliases, or any is accepted."""
    known = (info.model_name, settings.model, *settings.model_aliases)
    if name is not None and name not in known and not settings.accept_any_model:
        raise ModelNotFoundError(f"The model {name[:80]!r} does not exist here; this server has {info.model_name!r}")


def _check_limits(body: GenerationFields, settings: Settings, num_prompts: int) -> None:
    n = body.n or 1
    longest_stop = max(map(len, body.stop_strings), default=0)
    limits = (
        ("n", n, settings.max_n, "choices"),
        ("stop", len(body.stop_strings), settings.max_stop_strings, "stop strings"),
        ("stop", longest_stop, settings.max_stop_length, "characters in a stop string"),
        ("prompt", num_prompts, settings.max_prompts, "prompts"),
        ("n", n * num_prompts, settings.max_choices, "choices over all prompts"),
    )
    for param, value, limit, what in limits:
        if value > limit:
            raise InvalidRequestError(f"{param}: at most {limit} {what}, got {value}", param=param)


def _default(value: T | None, default: T) -> T:
    return default if value is None else value
