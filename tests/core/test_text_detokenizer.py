"""The detokenizer: any text survives any split; stop strings cut where they stand and never leak."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Metaspace
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE

from glass_core.text.detokenizer import Detokenizer, IncrementalDecoder
from tests.tiny_text import byte_tokenizer, tiny_text_processor

TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
TOKENIZER = byte_tokenizer()
TINY = tiny_text_processor()


def byte_ids(text: str) -> list[int]:
    return TINY.encode(text)


def decode_pieces(decoder: IncrementalDecoder, ids: Sequence[int]) -> list[str]:
    return [*(decoder.push(index) for index in ids), decoder.flush()]


class SplitDecoder:
    """Token ids are indices into a list of byte strings: any split of a text into tokens, also inside characters."""

    def __init__(self, data: bytes, cuts: Sequence[int]) -> None:
        bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        self.parts = [data[a:b] for a, b in itertools.pairwise(bounds)]

    def __call__(self, ids: Sequence[int]) -> str:
        return b"".join(self.parts[index] for index in ids).decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(TEXT, st.lists(st.integers(0, 10_000), max_size=80))
def test_any_split_of_any_text_gives_the_text(text: str, cuts: list[int]) -> None:
    decoder = SplitDecoder(text.encode(), cuts)
    pieces = decode_pieces(IncrementalDecoder(decoder), range(len(decoder.parts)))
    assert "".join(pieces) == text


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_pieces_never_hold_half_a_character(text: str) -> None:
    detokenizer = TINY.detokenizer()
    pieces = [detokenizer.push(index) for index in byte_ids(text)]
    assert "".join(pieces).count("\ufffd") <= text.count("\ufffd")
    assert "".join(pieces) + detokenizer.flush() == text


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_invalid_bytes_become_what_whole_decoding_makes_of_them(data: bytes) -> None:
    decoder = SplitDecoder(data, range(len(data)))
    pieces = decode_pieces(IncrementalDecoder(decoder), range(len(decoder.parts)))
    assert "".join(pieces) == data.decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(
    st.text("abc é😀", max_size=40),
    st.lists(st.text("abc é😀", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 10_000), max_size=60),
)
def test_stop_strings_cut_where_the_first_complete_one_begins(text: str, stop: list[str], cuts: list[int]) -> None:
    decoder = SplitDecoder(text.encode(), cuts)
    detokenizer = Detokenizer(IncrementalDecoder(decoder), stop, frozenset())
    shown = ""
    expected = text[: first_stop(text, stop)]
    for index in range(len(decoder.parts)):
        shown += detokenizer.push(index)
        assert expected.startswith(shown)
    shown += detokenizer.flush()
    assert shown == expected
    assert detokenizer.stopped == any(item in text for item in stop)


def first_stop(text: str, stop: list[str]) -> int:
    found = [(text.find(item) + len(item), text.find(item)) for item in stop if item in text]
    return min(found)[1] if found else len(text)


@given(st.text("ab", max_size=20), st.text("ab", min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_one_stop_string_cuts_where_find_says(text: str, stop: str) -> None:
    detokenizer = TINY.detokenizer([stop])
    shown = "".join(detokenizer.push(index) for index in byte_ids(text)) + detokenizer.flush()
    position = text.find(stop)
    assert shown == (text if position < 0 else text[:position])


def test_text_that_may_become_a_stop_string_is_held_and_then_released() -> None:
    detokenizer = TINY.detokenizer(["\n\nUser:"])
    assert [detokenizer.push(index) for index in byte_ids("a\n\nUs")] == ["a", "", "", "", ""]
    assert detokenizer.push(byte_ids("X")[0]) == "\n\nUsX"
    assert not detokenizer.stopped


def test_the_tail_of_an_answer_that_only_looked_like_a_stop_is_flushed() -> None:
    detokenizer = TINY.detokenizer(["stop"])
    assert "".join(detokenizer.push(index) for index in byte_ids("a st")) == "a "
    assert detokenizer.flush() == "st"


def test_nothing_comes_after_a_stop() -> None:
    detokenizer = TINY.detokenizer(["b"])
    assert "".join(detokenizer.push(index) for index in byte_ids("abc")) == "a"
    assert detokenizer.push(byte_ids("d")[0]) == ""
    assert detokenizer.flush() == ""


def test_special_tokens_are_not_text() -> None:
    detokenizer = TINY.detokenizer()
    ids = TINY.encode("<|im_start|>hi<|im_end|>")
    assert len(ids) == 4
    assert "".join(detokenizer.push(index) for index in ids) + detokenizer.flush() == "hi"


def sentencepiece_tokenizer() -> Tokenizer:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁capital", "▁of"]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], byte_fallback=True))
    tokenizer.decoder = DecoderSequence([ByteFallback(), Metaspace(), Fuse()])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def test_sentencepiece_keeps_the_space_between_prompt_and_continuation() -> None:
    tokenizer = sentencepiece_tokenizer()
    the, capital, of = (token_id(tokenizer, token) for token in ("▁the", "▁capital", "▁of"))
    decoder = IncrementalDecoder(tokenizer.decode, context=[the, capital])
    assert decoder.push(of) == " of"


@pytest.mark.parametrize("text", ["€", "😀", "a😀b"])
def test_byte_fallback_characters_wait_for_their_last_byte(text: str) -> None:
    tokenizer = sentencepiece_tokenizer()
    ids = [token_id(tokenizer, f"<0x{byte:02X}>") for byte in text.encode()]
    pieces = decode_pieces(IncrementalDecoder(tokenizer.decode), ids)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_an_unfinished_character_is_flushed_as_a_replacement() -> None:
    detokenizer = TINY.detokenizer()
    ids = byte_ids("😀")[:-1]
    assert [detokenizer.push(index) for index in ids] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"
