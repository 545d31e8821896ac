"""GGUF metadata → a `tokenizers.Tokenizer`, without torch or transformers.

A GGUF holds vocabulary, merges and token types; how text is cut before merging is only a name (`tokenizer.ggml.pre`),
whose rules llama.cpp has in code. The rules below are those of the models' own tokenizer.json files. An unknown name is
refused: a wrong cut gives text that looks right and scores worse.
"""

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from glass_core.checkpoint.gguf_sentencepiece import USER_DEFINED_TYPE, build_sentencepiece, space_runs
from glass_core.errors import CheckpointError, UnsupportedModelError

CONTROL_TYPE = 3
ADVICE = "put the model's tokenizer.json beside the .gguf file: it is used when present"
_GPT4_STYLE_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _llama3(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = _split_by(_GPT4_STYLE_SPLIT % "{1,3}")


def _qwen2(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _split_by(_GPT4_STYLE_SPLIT % "")


_PRE_TOKENIZERS: Mapping[str, Callable[[Tokenizer], None]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "qwen2": _qwen2,
}
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3")  # a word in the vocabulary is taken without merging
_ADDS_BOS = _WHOLE_WORDS_FIRST  # llama.cpp's default where the file has no add_bos_token


def build_tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file; `path` is for messages.

    Raises UnsupportedModelError (tokenizer model or pre-tokenizer) and CheckpointError (missing or inconsistent lists).
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(f"{path}: tokenizer model {kind!r} is not supported (gpt2, llama); {ADVICE}")
    tokens = _strings(metadata, "tokens", path)
    types = _token_types(metadata, tokens, path)
    if kind == "llama":
        tokenizer, adds_bos = build_sentencepiece(metadata, tokens, types, path), True
    else:
        tokenizer, adds_bos = _build_byte_level(metadata, tokens, path), metadata["tokenizer.ggml.pre"] in _ADDS_BOS
    _add_special_tokens(tokenizer, tokens, types, merged=set(space_runs(tokens, types)) if kind == "llama" else set())
    _wrap_prompts(tokenizer, metadata, adds_bos, path)
    return tokenizer


def _build_byte_level(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        supported = ", ".join(_PRE_TOKENIZERS)
        raise UnsupportedModelError(f"{path}: pre-tokenizer {pre!r} is not supported ({supported}); {ADVICE}")
    tokenizer = Tokenizer(_bpe(tokens, _strings(metadata, "merges", path), pre in _WHOLE_WORDS_FIRST, path))
    _PRE_TOKENIZERS[pre](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _strings(metadata: Mapping[str, Any], key: str, path: Path) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise CheckpointError(f"{path}: tokenizer.ggml.{key} is missing or not a list of strings")
    if key == "tokens" and len(set(values)) != len(values):
        raise CheckpointError(f"{path}: tokenizer.ggml.tokens has duplicates")
    return values


def _token_types(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.token_type is missing or does not fit the tokens")
    return types


def _bpe(tokens: list[str], merges: list[str], ignore_merges: bool, path: Path) -> Any:
    vocab = {token: index for index, token in enumerate(tokens)}
    if any(merge.count(" ") != 1 for merge in merges):
        raise CheckpointError(f"{path}: tokenizer.ggml.merges has an entry that is not two tokens")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        return models.BPE(vocab=vocab, merges=pairs, ignore_merges=ignore_merges)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: tokenizer.ggml.merges do not fit the tokens ({error})") from error


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int], *, merged: Set[str]) -> None:
    """Control tokens become special (hidden when decoding), user-defined ones only unsplittable, but for those that
    are `merged`. All in two calls: each call builds the matcher of all anew."""
    typed = list(zip(tokens, types, strict=True))
    special = [token for token, kind in typed if kind == CONTROL_TYPE]
    kept = [token for token, kind in typed if kind == USER_DEFINED_TYPE and token not in merged]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in kept])


def special_token(metadata: Mapping[str, Any], name: str) -> str | None:
    """Text of the token `tokenizer.ggml.<name>_token_id` points to; None when the file does not say."""
    index, tokens = metadata.get(f"tokenizer.ggml.{name}_token_id"), metadata.get("tokenizer.ggml.tokens")
    if isinstance(index, int) and isinstance(tokens, list) and 0 <= index < len(tokens):
        return str(tokens[index])
    return None


def _wrap_prompts(tokenizer: Tokenizer, metadata: Mapping[str, Any], adds_bos: bool, path: Path) -> None:
    """BOS before and EOS after plain prompts, where the file (for BOS: or llama.cpp's default) says so."""
    wanted = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", adds_bos),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    texts = {name: _required_token(metadata, name, path) for name, add in wanted.items() if add}
    if texts:
        bos, eos = ([texts[name]] if name in texts else [] for name in ("bos", "eos"))
        ids = [(token, tokenizer.token_to_id(token)) for token in texts.values()]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*bos, "$A", *eos], pair=[*bos, "$A", *eos, *bos, "$B", *eos], special_tokens=ids
        )


def _required_token(metadata: Mapping[str, Any], name: str, path: Path) -> str:
    token = special_token(metadata, name)
    if token is None:
        raise CheckpointError(f"{path}: the tokenizer adds {name}, but tokenizer.ggml.{name}_token_id names none")
    return token
