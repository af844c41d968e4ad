"""Bad input to real engines: a clear refusal, and the engine answers the next request."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any

import pytest

from bench._servers import Server
from demo import facts

CHAT = "/v1/chat/completions"
TIMEOUT_S = 60
ASKED = [{"role": "user", "content": "Name a fruit."}]
HUGE = 10**6


def post(server: Server, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON answer to a raw body."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def chat_body(**changes: Any) -> bytes:
    return json.dumps({"model": facts.QWEN3_CHAT, "messages": ASKED, "max_tokens": 5} | changes).encode()


def embed_body(**changes: Any) -> bytes:
    return json.dumps({"model": facts.EMBEDDER} | changes).encode()


def rerank_body(**changes: Any) -> bytes:
    return json.dumps({"model": facts.RERANKER, "query": "a", "documents": ["b"]} | changes).encode()


CASES = {
    "not JSON": (CHAT, b"model=demo", ""),
    "invalid UTF-8": (CHAT, b'{"model": "\xff\xfe"}', ""),
    "a list": (CHAT, b"[1, 2]", ""),
    "nested 10,000 deep": (CHAT, b'{"model": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", ""),
    "NaN": (CHAT, chat_body(temperature=float("nan")), ""),
    "no model": (CHAT, b'{"messages": []}', "model"),
    "a model of the wrong type": (CHAT, chat_body(model=7), "model"),
    "a model of the wrong kind": (CHAT, chat_body(model=facts.EMBEDDER), "model"),
    "a model that is a path": (CHAT, chat_body(model="../../etc/passwd"), "model"),
    "a model with NUL": (CHAT, chat_body(model="demo/qwen3-chat\0"), "model"),
    "no messages": (CHAT, b'{"model": "qwen3-chat"}', "messages"),
    "messages of the wrong type": (CHAT, chat_body(messages="hello"), "messages"),
    "n of a million": (CHAT, chat_body(n=HUGE), "n"),
    "n over OpenAI's limit": (CHAT, chat_body(n=129), "n"),
    "max_tokens of -1": (CHAT, chat_body(max_tokens=-1), "max_tokens"),
    "max_tokens of 2^63": (CHAT, chat_body(max_tokens=2**63), "max_tokens"),
    "a prompt over the context": (CHAT, chat_body(messages=[{"role": "user", "content": "why " * 20_000}]), "context"),
    "no input": (("/v1/embeddings"), embed_body(), "input"),
    "an empty list": ("/v1/embeddings", embed_body(input=[]), "input"),
    "an empty string": ("/v1/embeddings", embed_body(input=""), "input"),
    "an input of the wrong type": ("/v1/embeddings", embed_body(input={"a": 1}), "input"),
    "token ids that do not exist": ("/v1/embeddings", embed_body(input=[HUGE, -1]), "input"),
    "too many inputs": ("/v1/embeddings", embed_body(input=["a"] * 2049), "input"),
    "too many dimensions": ("/v1/embeddings", embed_body(input="a", dimensions=HUGE), "dimensions"),
    "a megabyte to embed": ("/v1/embeddings", embed_body(input="word " * 200_000), "input"),
    "an unknown encoding": ("/v1/embeddings", embed_body(input="a", encoding_format="hex"), "encoding_format"),
    "no documents": ("/v1/rerank", rerank_body(documents=[]), "documents"),
    "documents of the wrong type": ("/v1/rerank", rerank_body(documents=[1]), "documents"),
    "a query of the wrong type": ("/v1/rerank", rerank_body(query=None), "query"),
    "top_n of -1": ("/v1/rerank", rerank_body(top_n=-1), "top_n"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_the_field_named(server: Server, case: str) -> None:
    path, body, field = CASES[case]
    status, answer = post(server, path, body)
    assert status in (400, 404, 422), answer
    error = answer["error"]
    assert error["message"]
    assert field in (error.get("param") or "") or field in error["message"], error


def test_every_engine_answers_after_all_of_it(server: Server) -> None:
    status, answer = post(server, CHAT, chat_body(max_tokens=50, temperature=0))
    assert (status, answer["choices"][0]["message"]["content"]) == (200, facts.QWEN3.answers["Name a fruit."])
    assert post(server, "/v1/embeddings", embed_body(input="a"))[0] == 200
    assert post(server, "/v1/rerank", rerank_body())[0] == 200


@pytest.mark.parametrize(
    "path", ["/sleep", "/collective_rpc", "/pause", "/v1/load_lora_adapter", "/reset_prefix_cache"]
)
@pytest.mark.parametrize("spell", ["{}", "/{}", "/v1/..{}", "/v1/chat/../..{}", "/%2e%2e{}", "{}/", "{}?level=1"])
def test_engine_controls_do_not_exist_at_the_router(server: Server, path: str, spell: str) -> None:
    status, answer = post(server, spell.format(path), chat_body())
    assert status == 404, answer
    assert answer["error"]["message"]


def test_a_percent_encoded_control_does_not_exist_either(server: Server) -> None:
    assert post(server, "/%73leep", chat_body())[0] == 404
