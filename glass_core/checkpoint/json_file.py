"""Reading the JSON files of a checkpoint: size-bounded, an object at the top, errors that name the file."""

import json
from pathlib import Path
from typing import Any

from glass_core.errors import CheckpointError

MAX_JSON_BYTES = 256 << 20  # an index of a very large model is a few MB, a tokenizer.json a few tens of MB


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in `path`. Raises CheckpointError when it is missing, too large or not a JSON object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes, not a checkpoint's JSON file")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json_object(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
