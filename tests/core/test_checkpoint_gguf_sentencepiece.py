"""SentencePiece vocabularies of GGUF files, against a plain restatement of SentencePiece's BPE."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from glass_core.checkpoint.gguf_sentencepiece import ranked_merges
from glass_core.checkpoint.gguf_tokenizer import build_tokenizer
from glass_core.errors import CheckpointError, ModelError, UnsupportedModelError

PATH = Path("model.gguf")
# longer pieces in the order a trainer would have found them; "he" is better than "el", "▁the" better than "ther"
LEARNED = ["he", "▁t", "el", "ll", "▁the", "hell", "er", "ther", "▁▁", "lo", "hello", "ab", "aba", "ba"]
LETTERS = sorted({letter for piece in LEARNED for letter in piece})
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LEARNED, *LETTERS]
TYPES = [2, 3, 3, *[6] * 256, *[1] * (len(LEARNED) + len(LETTERS))]
SCORES = [0.0] * 259 + [-float(rank) for rank in range(len(LEARNED) + len(LETTERS))]
PIECES = dict(zip(TOKENS[259:], SCORES[259:], strict=True))


def build(**changes: Any) -> Tokenizer:
    values = {
        "model": "llama",
        "tokens": TOKENS,
        "scores": SCORES,
        "token_type": TYPES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return build_tokenizer({f"tokenizer.ggml.{key}": value for key, value in values.items()}, PATH)


def reference(text: str) -> list[str]:
    """Join the neighbors whose joined piece scores best (the left ones of equals) until nothing can be joined."""
    return merge("▁" + text if text else "")


def merge(text: str) -> list[str]:
    """The same without a prefix space."""
    pieces = list(text.replace(" ", "▁"))
    while True:
        joined = [(PIECES.get(left + right), index) for index, (left, right) in enumerate(pairwise(pieces))]
        found = [(-score, index) for score, index in joined if score is not None]
        if not found:
            break
        _, index = min(found)
        pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]
    return [token for piece in pieces for token in ([piece] if piece in PIECES else _bytes(piece))]


def _bytes(piece: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in piece.encode()]


TOKENIZER = build()
RUNS = ("  ", "   ", "    ")
GEMMA_LIKE = build(
    tokens=[token for token in TOKENS if token != "▁▁"] + list(RUNS),
    token_type=[kind for token, kind in zip(TOKENS, TYPES, strict=True) if token != "▁▁"] + [4] * len(RUNS),
    scores=[score for token, score in zip(TOKENS, SCORES, strict=True) if token != "▁▁"] + [-1000.0] * len(RUNS),
    add_space_prefix=False,
)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="helotrab é\n", max_size=40))
def test_tokens_equal_the_reference(text: str) -> None:
    assert TOKENIZER.encode(text, add_special_tokens=False).tokens == reference(text)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40).filter(lambda text: "▁" not in text))
def test_round_trip_over_unicode(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_known_words() -> None:
    assert TOKENIZER.encode("hello the").tokens == ["<s>", "▁", "hello", "▁the"]
    assert TOKENIZER.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert TOKENIZER.encode("<s>hello", add_special_tokens=False).tokens == ["<s>", "▁", "hello"]


def test_without_a_prefix_space() -> None:
    tokenizer = build(add_space_prefix=False)
    assert tokenizer.encode("hello  ", add_special_tokens=False).tokens == ["hello", "▁▁"]
    assert tokenizer.decode(tokenizer.encode(" hello").ids) == " hello"


def gemma_like(text: str) -> list[str]:
    """Runs of two to four spaces are cut out first, the longest of them; the rest is merged between them."""
    parts = re.split("( {2,4})", text)
    return [token for part in parts if part for token in ([part.replace(" ", "▁")] if part in RUNS else merge(part))]


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="helotrab   ", max_size=40))
def test_user_defined_runs_of_spaces_are_cut_out_first(text: str) -> None:
    assert GEMMA_LIKE.encode(text, add_special_tokens=False).tokens == gemma_like(text)
    assert GEMMA_LIKE.decode(GEMMA_LIKE.encode(text).ids) == text


def test_merges_are_ranked_by_the_joined_piece() -> None:
    assert ranked_merges({"a": -9.0, "b": -9.0, "aa": -1.0, "ab": 0.0, "aab": -3.0}) == [
        ("a", "b"),
        ("a", "a"),
        ("aa", "b"),
        ("a", "ab"),
    ]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": [*TOKENS[:-1], "a b"], "token_type": [*TYPES[:-1], 4]}, UnsupportedModelError, "'a b'"),
        ({"scores": None}, CheckpointError, "scores"),
        ({"scores": [0.0]}, CheckpointError, "scores"),
        ({"token_type": [1] * len(TOKENS)}, UnsupportedModelError, "256 byte tokens"),
        ({"token_type": [*TYPES[:260], 4, *TYPES[261:]]}, UnsupportedModelError, "user-defined"),
        ({"remove_extra_whitespaces": True}, UnsupportedModelError, "remove_extra_whitespaces"),
        ({"precompiled_charsmap": [1]}, UnsupportedModelError, "precompiled_charsmap"),
        ({"unknown_token_id": 10**6}, CheckpointError, "unknown_token_id"),
    ],
)
def test_refusals(changes: dict[str, Any], error: type[ModelError], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**changes)
