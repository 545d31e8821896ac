"""Result files of the measuring commands."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Indented JSON; NaN and infinity are not JSON and raise ValueError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
