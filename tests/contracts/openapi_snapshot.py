"""The OpenAPI schema as a file. `make snapshot` runs this to accept a deliberate change."""

import json
import sys
from pathlib import Path

from server.app import create_app_for
from server.config import Settings
from server.deps import Backend

SNAPSHOT = Path(__file__).parent / "openapi.json"


def render() -> str:
    """The schema of an app with default settings; it does not depend on the model."""
    schema = create_app_for(Settings(), Backend()).openapi()
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    SNAPSHOT.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {SNAPSHOT.name}: read the diff before committing it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
