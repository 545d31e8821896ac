"""Fixtures shared by every test package: the real default model, and threads that suit a small machine."""

import os
from pathlib import Path

import pytest

from glass_core.config import DEFAULT_MODEL, resolve_model
from glass_core.errors import ModelNotFoundError


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Folder of the pulled default model. `make test` pulls it; elsewhere its absence skips, in CI it fails."""
    try:
        return resolve_model(DEFAULT_MODEL)
    except ModelNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
