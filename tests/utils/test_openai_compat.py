"""The shapes of errors in each protocol."""

from __future__ import annotations

import json

import pytest

from utils.openai_compat import close_open_event, error_event, error_object


def test_errors_have_the_shape_of_the_clients_protocol() -> None:
    told = {"type_": "server_error", "code": "overloaded", "param": None, "request_id": "r1"}
    openai = error_object("openai", 503, "busy", **told)  # type: ignore[arg-type]
    assert openai == {"error": {"message": "busy", "type": "server_error", "param": None, "code": "overloaded"}}
    anthropic = error_object("anthropic", 503, "busy", **told)  # type: ignore[arg-type]
    error = {"type": "overloaded_error", "message": "busy"}
    assert anthropic == {"type": "error", "error": error, "request_id": "r1"}
    assert error_object("cohere", 503, "busy", **told) == {"id": "r1", "message": "busy"}  # type: ignore[arg-type]
    tei = error_object("tei", 503, "busy", **told)  # type: ignore[arg-type]
    assert tei == {"error": "busy", "error_type": "Overloaded"}
    assert error_object("tei", 400, "x", **told)["error_type"] == "Validation"  # type: ignore[arg-type]


def test_error_events_are_named_for_anthropic_only() -> None:
    assert error_event("openai", {"error": {}}) == b'data: {"error":{}}\n\n'
    name, data = error_event("anthropic", {"error": {}}).strip().split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == {"error": {}}


@pytest.mark.parametrize("tail", [b"", b"data: x\n\n", b"data: x\r\n\r\n", b"data: x\n", b"data: x", b"da"])
def test_an_open_event_is_closed_before_ours(tail: bytes) -> None:
    whole = tail + close_open_event(tail)
    assert not whole or whole.endswith((b"\n\n", b"\r\n\r\n"))
