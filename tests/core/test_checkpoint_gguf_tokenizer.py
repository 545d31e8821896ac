"""GGUF metadata → tokenizer: cuts, special tokens, round trips, refusals."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from glass_core.checkpoint.gguf_tokenizer import build_tokenizer, special_token
from glass_core.errors import CheckpointError, ModelError, UnsupportedModelError
from tests.tiny_gguf import tokenizer_metadata

PATH = Path("model.gguf")


def build(**changes: Any) -> Tokenizer:
    metadata = {**tokenizer_metadata(), **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    return build_tokenizer({key: value for key, value in metadata.items() if value is not None}, PATH)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """How the pre-tokenizer cuts, bytes shown as GPT-2's letters (space = Ġ)."""
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["Ġ", "1", "2", "3", "4", "5", "Ġcan", "'t"]),
        ("gpt-2", ["Ġ12345", "Ġcan", "'t"]),
        ("llama-bpe", ["Ġ", "123", "45", "Ġcan", "'t"]),
        ("llama3", ["Ġ", "123", "45", "Ġcan", "'t"]),
        ("qwen2", ["Ġ", "1", "2", "3", "4", "5", "Ġcan", "'t"]),
    ],
)
def test_each_pre_tokenizer_cuts_as_its_model_does(pre: str, expected: list[str]) -> None:
    assert pieces(build(pre=pre, bos_token_id=1), " 12345 can't") == expected


def test_digits_are_single_tokens_for_smollm() -> None:
    assert build().encode("12345").tokens == ["1", "2", "3", "4", "5"]


def test_qwen2_composes_unicode_first() -> None:
    assert build(pre="qwen2").encode("e\u0301").ids == build().encode("é").ids


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_round_trip_over_unicode(text: str) -> None:
    tokenizer = ROUND_TRIP
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


ROUND_TRIP = build()


def test_special_tokens_are_one_id_and_hidden_when_decoding() -> None:
    tokenizer = build()
    encoding = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert (encoding.ids[0], encoding.ids[-1]) == (1, 2)
    assert tokenizer.decode(encoding.ids) == "hi"


def test_user_defined_tokens_are_one_id_and_visible() -> None:
    types = tokenizer_metadata()["tokenizer.ggml.token_type"]
    last = len(types) - 1
    tokenizer = build(token_type=[*types[:-1], 4])
    token = tokenizer.id_to_token(last)
    encoding = tokenizer.encode(f"x{token}y")
    assert last in encoding.ids
    assert tokenizer.decode(encoding.ids) == f"x{token}y"


def test_bos_is_added_when_the_file_says_so() -> None:
    assert build(add_bos_token=True).encode("hi").ids[0] == 1
    assert build(add_bos_token=True).encode("hi", add_special_tokens=False).ids == build().encode("hi").ids
    assert build(pre="llama-bpe", add_bos_token=None).encode("hi").ids[0] == 1
    assert build(add_bos_token=None).encode("hi").ids[0] != 1


def test_llama3_takes_whole_words_without_merging() -> None:
    metadata = tokenizer_metadata()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    changes = {"tokens": [*tokens, "xyz"], "token_type": [*types, 1]}
    assert build(pre="llama3", add_bos_token=False, **changes).encode("xyz").tokens == ["xyz"]
    assert build(**changes).encode("xyz").tokens == ["x", "y", "z"]


def test_eos_is_added_when_the_file_says_so() -> None:
    assert build(add_eos_token=True).encode("hi").ids[-1] == 2
    assert build(add_eos_token=True, add_bos_token=True).encode("").ids == [1, 2]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "t5"}, UnsupportedModelError, r"'t5' is not supported.*tokenizer\.json beside"),
        ({"model": None}, UnsupportedModelError, "None is not supported"),
        ({"pre": "tekken"}, UnsupportedModelError, r"'tekken'.*smollm.*tokenizer\.json beside"),
        ({"pre": "default"}, UnsupportedModelError, "'default'"),
        ({"pre": None}, UnsupportedModelError, "pre-tokenizer None"),
        ({"tokens": None}, CheckpointError, r"tokenizer\.ggml\.tokens"),
        ({"tokens": [1, 2]}, CheckpointError, r"tokenizer\.ggml\.tokens"),
        ({"tokens": ["a", "a"]}, CheckpointError, "duplicates"),
        ({"merges": ["a"]}, CheckpointError, "not two tokens"),
        ({"merges": ["nope nopenope"]}, CheckpointError, "do not fit"),
        ({"token_type": [1]}, CheckpointError, "token_type"),
        ({"add_bos_token": True, "bos_token_id": None}, CheckpointError, "bos_token_id"),
        ({"add_bos_token": True, "bos_token_id": 10**6}, CheckpointError, "bos_token_id"),
    ],
)
def test_refusals(changes: dict[str, Any], error: type[ModelError], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**changes)


def test_special_token_text() -> None:
    assert special_token(tokenizer_metadata(), "eos") == "<|im_end|>"
    assert special_token({}, "eos") is None
