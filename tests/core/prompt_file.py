"""Instructions as the evaluations read them: a JSON object a line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INSTRUCTIONS = ("What is the capital of France?", "Tell me about the fox.", "Where are the sea shells?", "Who is lazy?")


def write_lines(path: Path, entries: Sequence[Any]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path
