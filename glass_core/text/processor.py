"""TextProcessor: everything a server needs to know about a model's text, read from its folder once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from glass_core.errors import InvalidRequestError
from glass_core.text.byte_level import ByteLevelDecoder, TokenTable
from glass_core.text.chat_template import SPECIAL_TOKEN_NAMES, ChatTemplate, Message
from glass_core.text.detokenizer import Decoder, Detokenizer, IncrementalDecoder
from glass_core.text.template_source import compile_chosen, read_chosen_template, read_own_template
from glass_core.text.tokenizer import (
    read_json_object,
    read_stop_token_ids,
    read_tokenizer,
    sentencepiece_bytes,
    special_token_ids,
    token_content,
)

NO_TEMPLATE = "this model has no chat template: use /v1/completions, or start the server with --chat-template FILE"


class TextProcessor:
    """Encodes prompts, renders conversations, makes detokenizers. Safe to share between threads.

    `template_origin` says where `template` was found, for people.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        stop_token_ids: Sequence[int] = (),
        *,
        template_origin: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._skipped = special_token_ids(tokenizer)
        is_byte_level = isinstance(tokenizer.decoder, ByteLevel)
        self._table = TokenTable(tokenizer.id_to_token) if is_byte_level else None
        self.stop_token_ids = tuple(stop_token_ids)
        self.template_origin = template_origin

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of text that already holds its special tokens, such as a rendered conversation."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens the tokenizer adds by itself (a BOS, for many models)."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of whole token sequences, without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, special tokens by their name. Empty for ids the tokenizer does not know."""
        if self._table is not None:
            return self._table.bytes_of(token_id)
        return sentencepiece_bytes(self._tokenizer.id_to_token(token_id) or "")

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: Any) -> str:
        """Prompt text of a conversation.

        Raises InvalidRequestError (param `messages`) when the model has no chat template or its template refuses.
        """
        if self._template is None:
            raise InvalidRequestError(NO_TEMPLATE, param="messages")
        return self._template.render(messages, add_generation_prompt=add_generation_prompt, **kwargs)

    def detokenizer(self, stop: Sequence[str] = (), *, context: Sequence[int] = ()) -> Detokenizer:
        """A detokenizer for one answer that follows the prompt tokens `context` (only the last few matter)."""
        visible = [token_id for token_id in context[-16:] if token_id not in self._skipped]
        return Detokenizer(self._decoder(visible), stop, self._skipped)

    def _decoder(self, context: Sequence[int]) -> Decoder:
        if self._table is None:
            return IncrementalDecoder(self.decode, context)
        return ByteLevelDecoder(self._table, context)


def load_text_processor(model_dir: Path, chat_template: str | None = None) -> TextProcessor:
    """The text side of a checkpoint folder: tokenizer.json and, when present, tokenizer_config.json,
    chat_template.jinja, generation_config.json and config.json.

    `chat_template`, a Jinja file or the name of one of the checkpoint's templates, replaces the checkpoint's own.
    Raises CheckpointError naming the file that is missing or malformed, ConfigurationError for a wrong `chat_template`.
    """
    tokenizer = read_tokenizer(model_dir)
    config = read_json_object(model_dir / "tokenizer_config.json")
    specials = _special_tokens(config)
    template, origin = _find_template(model_dir, config, specials, chat_template)
    stop_token_ids = read_stop_token_ids(model_dir, tokenizer, specials.get("eos_token"))
    return TextProcessor(tokenizer, template, stop_token_ids, template_origin=origin)


def _find_template(
    model_dir: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str], choice: str | None
) -> tuple[ChatTemplate | None, str | None]:
    if choice is not None:
        chosen = read_chosen_template(choice, tokenizer_config)
        return compile_chosen(chosen, special_tokens), chosen.origin
    own = read_own_template(model_dir, tokenizer_config)
    return (None, None) if own is None else (ChatTemplate(own.text, special_tokens), own.origin)


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    found = {name: token_content(tokenizer_config.get(name)) for name in SPECIAL_TOKEN_NAMES}
    return {name: text for name, text in found.items() if text is not None}
