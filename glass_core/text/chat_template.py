"""ChatTemplate: messages to prompt text, equal to `apply_chat_template(..., tokenize=False)` of transformers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from glass_core.errors import CheckpointError, InvalidRequestError
from glass_core.text.sandbox import MAX_TEXT, TemplateEnvironment

RENDER_SECONDS = 2.0
# what HF makes visible to a template, from tokenizer_config.json
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled chat template. Safe to render from several threads.

    `special_tokens` maps names such as `bos_token` to their text. Raises CheckpointError when `source` is not a
    template.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], *, render_seconds: float = RENDER_SECONDS
    ) -> None:
        self._environment = TemplateEnvironment()
        self._special_tokens = dict(special_tokens)
        self._render_seconds = render_seconds
        try:
            self._template = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(f"the chat template is malformed at line {error.lineno}: {error.message}") from error
        except (RecursionError, SyntaxError) as error:  # Python's own limits, on the code jinja2 makes of it
            raise CheckpointError("the chat template is nested too deeply") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: Any) -> str:
        """The prompt text. Keys of a message whose value is None are left out, as HF does.

        `kwargs` become template variables. Raises InvalidRequestError (param `messages`) when the template refuses
        the messages, cannot render them, or exceeds its limits of time and size.
        """
        variables = {
            "messages": [{key: value for key, value in message.items() if value is not None} for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._special_tokens,
            **kwargs,
        }
        try:
            with self._environment.deadline(self._render_seconds):
                return self._join(self._template.generate(variables))
        except SecurityError as error:
            raise InvalidRequestError(str(error), param="messages") from error
        except TemplateError as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequestError(message, param="messages") from error
        except Exception as error:  # a template can fail in any way a Python expression can
            message = f"the model's chat template cannot render these messages: {error}"
            raise InvalidRequestError(message, param="messages") from error

    def _join(self, blocks: Iterable[str]) -> str:
        parts: list[str] = []
        size = 0
        for block in blocks:
            self._environment.check_deadline()
            size += len(block)
            if size > MAX_TEXT:
                raise SecurityError(f"the chat template makes a prompt of more than {MAX_TEXT} characters")
            parts.append(block)
        return "".join(parts)
