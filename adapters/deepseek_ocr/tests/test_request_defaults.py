"""What the middleware does to a request's body: no server, no vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest
from roundhouse_deepseek_ocr.request_defaults import DEFAULTS, OPENAI, Message, RequestDefaults

CHAT = "/v1/chat/completions"


async def seen(*chunks: bytes, path: str = CHAT, method: str = "POST") -> tuple[bytes, dict[bytes, bytes]]:
    """The body and the headers that the server gets of a request that comes in `chunks`."""
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        got.extend((body, dict(scope["headers"])))

    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    length = sum(map(len, chunks))
    headers = [(b"host", b"x"), (b"content-length", str(length).encode())]
    await RequestDefaults(app)({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
    return got[0], got[1]


@pytest.mark.parametrize("path", DEFAULTS)
async def test_what_the_client_does_not_say_is_added(path: str) -> None:
    body, headers = await seen(b'{"model": "x"}', path=path)
    assert json.loads(body) == {"model": "x", **DEFAULTS[path]}
    assert headers[b"content-length"] == str(len(body)).encode()


async def test_what_the_client_says_counts() -> None:
    body, _ = await seen(b'{"temperature": 0.5, "skip_special_tokens": true}')
    assert json.loads(body) == {**OPENAI, "temperature": 0.5, "skip_special_tokens": True}


@pytest.mark.parametrize("chunks", [(b"", b" \n", b' {"model"', b': "x"}'), (b'{"model": "x"', b"}"), (b"{}",)])
async def test_a_body_may_come_in_any_pieces(chunks: tuple[bytes, ...]) -> None:
    body, headers = await seen(*chunks)
    assert json.loads(body) == json.loads(b"".join(chunks)) | OPENAI
    assert headers[b"content-length"] == str(len(body)).encode()


@pytest.mark.parametrize("sent", [b"", b"[]", b"no JSON", b"\xff"])
async def test_what_is_no_object_is_left_for_vllm_to_refuse(sent: bytes) -> None:
    body, headers = await seen(sent)
    assert body == sent
    assert headers[b"content-length"] == str(len(sent)).encode()


@pytest.mark.parametrize(("path", "method"), [("/tokenize", "POST"), (CHAT, "GET")])
async def test_other_requests_stay_as_they_are(path: str, method: str) -> None:
    assert (await seen(b"{}", path=path, method=method))[0] == b"{}"
