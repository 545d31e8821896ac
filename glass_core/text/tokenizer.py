"""Reading `tokenizer.json` with the `tokenizers` library: text to token ids and back, without transformers.

`transformers.AutoTokenizer` would import torch (seconds, and a dependency the online path must not have); the Rust
library behind it loads the same file in a tenth of a second.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from glass_core.errors import CheckpointError


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty when there is no such file.

    Raises CheckpointError when the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, got {type(content).__name__}")
    return content


def read_tokenizer(model_dir: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Truncation and padding stored in the file (leftovers of training) are switched off: both would change a prompt
    silently. Raises CheckpointError when `tokenizer.json` is missing or malformed.
    """
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError("the checkpoint has no tokenizer.json, the only tokenizer format supported")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_content(value: Any) -> str | None:
    """The text of a special token as `tokenizer_config.json` writes it: a string, or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def special_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens that decoding leaves out."""
    return frozenset(index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def read_stop_token_ids(model_dir: Path, tokenizer: Tokenizer, eos_token: str | None) -> tuple[int, ...]:
    """Ids that end an answer, ascending: `eos_token_id` of generation_config.json (else of config.json), and the
    tokenizer's own end-of-sequence token, because many chat models name only one of the two."""
    declared = _eos_ids(read_json_object(model_dir / "generation_config.json"), "generation_config.json")
    if not declared:
        declared = _eos_ids(read_json_object(model_dir / "config.json"), "config.json")
    own = tokenizer.token_to_id(eos_token) if eos_token is not None else None
    return tuple(sorted({*declared, *(() if own is None else (own,))}))


def _eos_ids(config: Mapping[str, Any], file_name: str) -> Sequence[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in ids):
        raise CheckpointError(f"eos_token_id in {file_name} must be an integer or a list of integers, got {value!r}")
    return ids


def sentencepiece_bytes(token: str) -> bytes:
    """What a SentencePiece token stands for: `▁` is a space, `<0x0A>` a byte."""
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
