"""Event framing: an envelope filled equals the event encoded whole."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.sse import Envelope, event

TEXT = st.text(st.characters(), max_size=40)  # lone surrogates too


@settings(max_examples=200, deadline=None)
@given(TEXT, st.one_of(TEXT, st.just(Envelope.TEXT)))
def test_a_filled_envelope_is_the_event(text: str, model: str) -> None:
    def value(content: str) -> dict[str, object]:
        return {"model": model, "choices": ({"delta": {"content": content}, "finish_reason": None},), "usage": None}

    assert Envelope(value(Envelope.TEXT)).fill(text) == event(value(text))


def test_numbers_json_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        event({"value": math.nan})
