"""The Prometheus executables: found or skipped, never downloaded by a test."""

import os

import pytest

from tests.stack.get_prometheus import Prometheus, find


@pytest.fixture(scope="session")
def prometheus() -> Prometheus:
    found = find()
    if found is None:
        message = "no Prometheus: install Debian's package `prometheus`, or run `python -m tests.stack.get_prometheus`"
        if os.environ.get("CI"):
            raise RuntimeError(message)
        pytest.skip(message)
    return found
