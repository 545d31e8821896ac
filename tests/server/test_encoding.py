"""Short prompts are encoded at once, long ones beside the event loop."""

import asyncio
import threading

import pytest

from server.routes.encoding import SHORT_PROMPT, encode_beside


@pytest.mark.parametrize(("size", "at_once"), [(0, True), (SHORT_PROMPT, True), (SHORT_PROMPT + 1, False)])
def test_only_short_prompts_are_encoded_in_the_loop_s_thread(size: int, at_once: bool) -> None:
    thread = asyncio.run(encode_beside(size, threading.get_ident))
    assert (thread == threading.get_ident()) is at_once


@pytest.mark.parametrize("size", [1, SHORT_PROMPT + 1])
def test_what_encoding_raises_reaches_the_caller(size: int) -> None:
    def fail() -> None:
        raise ValueError("no such token")

    with pytest.raises(ValueError, match="no such token"):
        asyncio.run(encode_beside(size, fail))
