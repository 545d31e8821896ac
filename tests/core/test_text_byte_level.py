"""The byte-level table equals the tokenizers library's own decoding, whatever the tokens."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel

from glass_core.text import TextProcessor
from glass_core.text.byte_level import ByteLevelDecoder, TokenTable
from glass_core.text.detokenizer import IncrementalDecoder
from tests.core.test_text_detokenizer import sentencepiece_tokenizer
from tests.tiny_text import byte_tokenizer


def tokenizer_with_added_tokens() -> Tokenizer:
    """Single bytes, a merge, special tokens, and added tokens inside and outside the byte alphabet."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("two words"), AddedToken("日本"), AddedToken("é\n")])
    return tokenizer


TOKENIZER = tokenizer_with_added_tokens()
TABLE = TokenTable(TOKENIZER.id_to_token)
UNKNOWN = TOKENIZER.get_vocab_size() + 5
IDS = st.lists(st.one_of(st.integers(0, TOKENIZER.get_vocab_size() - 1), st.just(UNKNOWN)), max_size=40)
BYTES = st.lists(st.sampled_from([TOKENIZER.encode(chr(0x80)).ids[0], *TOKENIZER.encode("aé😀").ids]), max_size=12)


def decode(ids: Sequence[int]) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def pushed(decoder: ByteLevelDecoder, ids: Sequence[int]) -> str:
    return "".join(map(decoder.push, ids)) + decoder.flush()


@settings(max_examples=400, deadline=None)
@given(st.one_of(IDS, BYTES))
def test_the_pieces_are_the_whole_sequences_text(ids: list[int]) -> None:
    assert pushed(ByteLevelDecoder(TABLE), ids) == decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_text_goes_on_after_a_prompt(prompt: str, answer: str) -> None:
    context, ids = TOKENIZER.encode(prompt).ids, TOKENIZER.encode(answer).ids
    decoder = ByteLevelDecoder(TABLE, context)
    assert decode(context) + pushed(decoder, ids) == decode([*context, *ids])


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_every_character_comes_with_its_last_byte(text: str) -> None:
    decoder = ByteLevelDecoder(TABLE)
    shown = ""
    ids = TOKENIZER.encode(text).ids
    for count, token_id in enumerate(ids, start=1):
        shown += decoder.push(token_id)
        assert shown == decode(ids[:count]).rstrip("\ufffd") or "\ufffd" in text


def test_a_character_begun_by_the_prompt_is_completed_by_the_answer() -> None:
    *first, last = TOKENIZER.encode("😀").ids
    assert ByteLevelDecoder(TABLE, first).push(last) == "😀"


@pytest.mark.parametrize("special", ["<|endoftext|>", "<tool>", "日本"])
def test_an_added_token_is_its_own_text(special: str) -> None:
    token_id = TOKENIZER.token_to_id(special)
    assert token_id is not None
    assert TABLE[token_id] == special


def test_only_byte_level_tokenizers_are_decoded_by_table() -> None:
    def kind(tokenizer: Tokenizer) -> type[object]:
        return type(TextProcessor(tokenizer)._decoder([]))

    assert isinstance(TOKENIZER.decoder, ByteLevel)
    assert kind(TOKENIZER) is ByteLevelDecoder
    assert kind(sentencepiece_tokenizer()) is IncrementalDecoder
