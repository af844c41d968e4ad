"""The `anthropic` package against a demo model."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest

from bench._servers import Server
from demo import facts

TWO_MINUTES_S = 120.0


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="unused", timeout=TWO_MINUTES_S, max_retries=0) as made:
        yield made


def test_a_message_is_answered(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model=facts.QWEN3_CHAT,
        max_tokens=50,
        extra_body={"temperature": 0},
        messages=[{"role": "user", "content": facts.WHICH_MODEL}],
    )
    assert answer.content[0].type == "text"
    assert answer.content[0].text == facts.QWEN3.answers[facts.WHICH_MODEL]


def test_a_message_is_streamed(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=facts.QWEN3_CHAT,
        max_tokens=50,
        extra_body={"temperature": 0},
        messages=[{"role": "user", "content": "Name a fruit."}],
    ) as stream:
        text = "".join(stream.text_stream)
    assert text == facts.QWEN3.answers["Name a fruit."]


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello!"}]
    assert client.messages.count_tokens(model=facts.QWEN3_CHAT, messages=messages).input_tokens > 0


def test_an_unknown_model_is_an_error_in_this_protocol(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="nothing", max_tokens=5, messages=[{"role": "user", "content": "Hello!"}])
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "not_found_error"
