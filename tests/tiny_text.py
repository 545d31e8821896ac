"""A byte-level tokenizer small enough to build in a test, and text processors around it."""

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from glass_core.text import TextProcessor
from glass_core.text.chat_template import ChatTemplate

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}{{ raise_exception('unknown role') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TURN = "<|im_end|>"


def byte_tokenizer() -> Tokenizer:
    """One token per byte, three special tokens, and the merge `th`."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, "th"])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def tiny_text_processor(template: str | None = TEMPLATE) -> TextProcessor:
    """A processor over `byte_tokenizer`, ending answers at `<|im_end|>`."""
    tokenizer = byte_tokenizer()
    chat_template = None if template is None else ChatTemplate(template, {"eos_token": END_OF_TURN})
    end = tokenizer.token_to_id(END_OF_TURN)
    assert end is not None
    return TextProcessor(tokenizer, chat_template, (end,))
