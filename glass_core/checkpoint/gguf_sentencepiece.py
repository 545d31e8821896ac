"""SentencePiece BPE (Llama 1/2, Mistral, TinyLlama, Gemma) out of GGUF metadata.

SentencePiece merges the pair whose joined piece has the best score; `tokenizers` wants an ordered list of merges. Every
way to split a piece into two pieces is a merge, ranked by the joined piece's score, as transformers converts these
models. Characters outside the vocabulary fall back to their UTF-8 bytes.

User-defined pieces that are runs of spaces (Gemma's) are cut out before any merge, the longest first; here they are the
best-ranked merges, which comes to the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers

from glass_core.errors import CheckpointError, UnsupportedModelError

SPACE = "▁"
NORMAL_TYPE, USER_DEFINED_TYPE, BYTE_TYPE = 1, 4, 6


def build_sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int], path: Path) -> Tokenizer:
    """The tokenizer without its special tokens.

    Raises UnsupportedModelError for text normalization we do not do, CheckpointError for inconsistent lists.
    """
    _refuse_normalization(metadata, tokens, types, path)
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.scores is missing or does not fit the tokens")
    if types.count(BYTE_TYPE) != 256:
        raise UnsupportedModelError(f"{path}: a SentencePiece vocabulary without the 256 byte tokens is not supported")
    normal = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL_TYPE}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or unknown >= len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.unknown_token_id is {unknown!r}")
    runs = {token.replace(" ", SPACE): 0.0 for token in space_runs(tokens, types)}
    model = models.BPE(
        vocab={_piece(token, runs): index for index, token in enumerate(tokens)},
        merges=ranked_merges({SPACE: 0.0, **runs}) + ranked_merges(normal) if runs else ranked_merges(normal),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    return _with_spaces(Tokenizer(model), metadata.get("tokenizer.ggml.add_space_prefix", True))


def _refuse_normalization(metadata: Mapping[str, Any], tokens: list[str], types: list[int], path: Path) -> None:
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if metadata.get(f"tokenizer.ggml.{key}"):
            raise UnsupportedModelError(f"{path}: tokenizer.ggml.{key} is not supported")
    runs = set(space_runs(tokens, types))
    for token, kind in zip(tokens, types, strict=True):
        if kind == USER_DEFINED_TYPE and token not in runs and (SPACE in token or " " in token):
            raise UnsupportedModelError(
                f"{path}: the user-defined SentencePiece token {token!r} is not supported: text and spaces in one"
            )


def space_runs(tokens: Sequence[str], types: Sequence[int]) -> list[str]:
    """User-defined tokens that are nothing but two or more spaces, as the file spells them."""
    defined = (token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED_TYPE)
    return [token for token in defined if len(token) > 1 and not token.strip(f" {SPACE}")]


def _piece(token: str, runs: Mapping[str, float]) -> str:
    """The token as merges spell it."""
    spelled = token.replace(" ", SPACE)
    return spelled if spelled in runs else token


def ranked_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All merges among the pieces, best joined score first; of one piece's splits, the longest left part first."""
    return sorted(_splits(scores), key=lambda split: (-scores[split[0] + split[1]], -len(split[0])))


def _splits(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for piece in scores:
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                yield piece[:cut], piece[cut:]


def _with_spaces(tokenizer: Tokenizer, add_prefix: bool) -> Tokenizer:
    """Spaces become ▁ before merging and come back when decoding; a prefix space added here is dropped there."""
    replace = normalizers.Replace(" ", SPACE)
    decode = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if add_prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        tokenizer.decoder = decoders.Sequence([*decode, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = replace
        tokenizer.decoder = decoders.Sequence(decode)
    return tokenizer
