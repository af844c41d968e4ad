"""Requests through the real server to engines on unix sockets."""

from __future__ import annotations

import pytest

from tests.app.serving import Served


async def test_an_answer_reaches_the_client_byte_for_byte(served: Served) -> None:
    answer = await served.chat(fake={"answer": '{"x":  1.50,\n"y":"ü"}', "status": 418})
    assert answer.status_code == 418
    assert answer.content == '{"x":  1.50,\n"y":"ü"}'.encode()
    assert answer.headers["x-engine"] == "1"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("name", ["org/chatty", "gpt-4o", "chatty", "ORG/Chatty", "GPT-4O"])
async def test_every_spelling_reaches_the_engine_as_the_served_name(served: Served, name: str) -> None:
    await served.chat(name, big=2**70, fraction=0.1)
    assert served.engines.seen[0].raw.count(b'"org/chatty"') == 1
    assert b"1180591620717411303424" in served.engines.seen[0].raw
