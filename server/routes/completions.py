"""`POST /v1/completions`."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from glass_core.errors import InvalidRequestError
from glass_core.text import TextProcessor
from server.deps import AdmittedModelDep, GlassHeadersDep, LoadedModel, MetricsDep, SettingsDep
from server.generation import ChoiceEnd, Generator
from server.logprobs import ShownToken, completion_logprobs
from server.routes.answering import ChunkStream, Json, collect, whole
from server.routes.build import RequestBuilder
from server.routes.described import ERROR_RESPONSES
from server.routes.encoding import encode_beside
from server.schemas.completions import Completion, CompletionRequest, Prompt
from server.sse import EventStreamResponse, StrictJsonResponse, until_disconnect

router = APIRouter(tags=["generation"])
OBJECT_NAME = "text_completion"


@router.post("/v1/completions", response_model=Completion, responses=ERROR_RESPONSES)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    settings: SettingsDep,
    model: AdmittedModelDep,
    metrics: MetricsDep,
    headers: GlassHeadersDep,
) -> Response:
    """Continue one or several prompts, given as text or as token ids.

    Choice `i` of prompt `p` has index `p * n + i`. The GLASS fields are those of `/v1/chat/completions`.
    """
    builder = RequestBuilder(body, headers, settings, model, prompt_param="prompt")
    builder.check(num_prompts=len(body.prompts))
    prompts = await encode_beside(sum(map(len, body.prompts)), lambda: _encode(body.prompts, model))
    answer = builder.answer("cmpl", prompts)
    choices = builder.choices(answer, prompts)
    echoes = _echoes(body, prompts, model)
    generator = Generator(model.engine, model.text, metrics)
    batches = generator.generate(choices, idle_seconds=settings.keepalive_seconds)
    if body.stream:
        stream = ChunkStream(answer, OBJECT_NAME, CompletionChunkEncoder(echoes, model.text), len(choices))
        return EventStreamResponse(stream.frames(batches))
    ends = await until_disconnect(request.receive, collect(batches))
    shown = [_choice(end, echoes, body.num_logprobs, model.text) for end in ends.values()]
    return StrictJsonResponse(whole(answer, OBJECT_NAME, shown, ends))


def _encode(prompts: Sequence[Prompt], model: LoadedModel) -> list[list[int]]:
    return [model.text.encode_prompt(item) if isinstance(item, str) else _known_ids(item, model) for item in prompts]


def _known_ids(token_ids: list[int], model: LoadedModel) -> list[int]:
    vocab_size = model.engine.info.vocab_size
    if max(token_ids) >= vocab_size:
        message = f"prompt: token ids must be below the vocabulary size {vocab_size}, got {max(token_ids)}"
        raise InvalidRequestError(message, param="prompt")
    return token_ids


def _echoes(body: CompletionRequest, prompts: Sequence[Sequence[int]], model: LoadedModel) -> list[str]:
    """What each choice's text begins with, by index: its prompt, or nothing."""
    if not body.echo:
        return [""] * (len(prompts) * (body.n or 1))
    texts = [
        item if isinstance(item, str) else model.text.decode(ids)
        for item, ids in zip(body.prompts, prompts, strict=True)
    ]
    return [text for text in texts for _ in range(body.n or 1)]


def _choice(end: ChoiceEnd, echoes: Sequence[str], num_logprobs: int | None, text: TextProcessor) -> Json:
    logprobs = None if num_logprobs is None else completion_logprobs(end.tokens, text)
    answer = echoes[end.index] + end.text
    return {"index": end.index, "text": answer, "finish_reason": end.reason.value, "logprobs": logprobs}


class CompletionChunkEncoder:
    """Choices of streamed `text_completion` objects; an echoed prompt is the first chunk."""

    def __init__(self, echoes: Sequence[str], text: TextProcessor) -> None:
        self._echoes = echoes
        self._text = text

    def start(self, index: int) -> Json | None:
        return self.delta(index, self._echoes[index]) if self._echoes[index] else None

    def delta(self, index: int, text: str, tokens: Sequence[ShownToken] = ()) -> Json:
        logprobs = completion_logprobs(tokens, self._text) if tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def end(self, index: int, reason: str) -> Json:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}
