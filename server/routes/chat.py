"""`POST /v1/chat/completions`."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from glass_core.text import TextProcessor
from server.deps import AdmittedModelDep, GlassHeadersDep, MetricsDep, SettingsDep
from server.generation import ChoiceEnd, Generator
from server.logprobs import ShownToken, chat_logprobs
from server.routes.answering import ChunkStream, Json, collect, whole
from server.routes.build import RequestBuilder
from server.routes.described import ERROR_RESPONSES
from server.routes.encoding import encode_beside
from server.schemas.chat import ChatCompletion, ChatCompletionRequest
from server.sse import EventStreamResponse, StrictJsonResponse, until_disconnect

router = APIRouter(tags=["generation"])

MESSAGE_SIZE = 32  # characters that a template puts around a message, about


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERROR_RESPONSES)
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    settings: SettingsDep,
    model: AdmittedModelDep,
    metrics: MetricsDep,
    headers: GlassHeadersDep,
) -> Response:
    """Answer a conversation, whole or as a stream of chunks.

    OpenAI's endpoint with six more fields: `glass_sparsity`, `glass_max_kl`, `lambda`, `glass_method`,
    `glass_profile` and `glass_refine`. Every answer, and the last chunk of a stream, has a `glass` object that says
    what was computed and what was saved.
    """
    builder = RequestBuilder(body, headers, settings, model, prompt_param="messages")
    builder.check(num_prompts=1)
    messages = [message.template_json() for message in body.messages]
    size = sum(MESSAGE_SIZE + len(message["content"] or "") for message in messages)
    prompt = await encode_beside(size, lambda: model.text.encode(model.text.render_chat(messages)))
    answer = builder.answer("chatcmpl", [prompt])
    choices = builder.choices(answer, [prompt])
    generator = Generator(model.engine, model.text, metrics)
    batches = generator.generate(choices, idle_seconds=settings.keepalive_seconds)
    if body.stream:
        stream = ChunkStream(answer, "chat.completion.chunk", ChatChunkEncoder(model.text), len(choices))
        return EventStreamResponse(stream.frames(batches))
    ends = await until_disconnect(request.receive, collect(batches))
    shown = [_choice(end, body.num_logprobs, model.text) for end in ends.values()]
    return StrictJsonResponse(whole(answer, "chat.completion", shown, ends))


def _choice(end: ChoiceEnd, num_logprobs: int | None, text: TextProcessor) -> Json:
    logprobs = None if num_logprobs is None else chat_logprobs(end.tokens, text)
    message = {"role": "assistant", "content": end.text, "refusal": None}
    return {"index": end.index, "message": message, "finish_reason": end.reason.value, "logprobs": logprobs}


class ChatChunkEncoder:
    """Choices of `chat.completion.chunk` objects."""

    def __init__(self, text: TextProcessor) -> None:
        self._text = text

    def start(self, index: int) -> Json | None:
        return self._choice(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, text: str, tokens: Sequence[ShownToken] = ()) -> Json:
        choice = self._choice(index, {"content": text})
        return {**choice, "logprobs": chat_logprobs(tokens, self._text)} if tokens else choice

    def end(self, index: int, reason: str) -> Json:
        return self._choice(index, {}, reason)

    def _choice(self, index: int, delta: Json, reason: str | None = None) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
