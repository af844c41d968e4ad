"""The API's routes in terms of an engine's methods: a request's body goes in, the answer's or its events come out."""

from __future__ import annotations

import base64
import json
import math
import struct
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Union

from . import Engine, RequestError

Body = dict[str, Any]
Events = Generator[bytes, None, None]  # of a stream of server-sent events
Follow = Callable[[Iterable[Any]], Iterator[Any]]  # around pieces as they come: counts them, ends with the client
Answer = Union[Body, list[Any], Events]
Route = Callable[[Engine, Body, Follow], Answer]

NOT_PARAMS = ("model", "messages", "prompt", "stream", "stream_options")


def call(engine: Engine, path: str, body: Any, follow: Follow) -> Answer:
    """Raises RequestError, NotSupported, or whatever the engine raises."""
    if path not in ROUTES:
        raise NotSupported(f"{path} is not served by engines of packages; {_served(engine)}.")
    method, route = ROUTES[path]
    if not hasattr(engine, method):
        raise NotSupported(f"{path} needs the method {method}, which this engine does not have; {_served(engine)}.")
    if not isinstance(body, dict):
        raise RequestError("The body must be a JSON object.")
    return route(engine, body, follow)


def _served(engine: Engine) -> str:
    served = [path for path, (method, _) in ROUTES.items() if hasattr(engine, method)]
    return f"it serves {', '.join([*served, INFER] if hasattr(engine, 'predict') else served)}"


class NotSupported(Exception):
    """404"""


# Text


def _chat(engine: Any, body: Body, follow: Follow) -> Answer:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message.", "messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError("A message must be an object with a role.", f"messages[{number}]")
    pieces = _pieces(engine.chat(messages, _params(body)), follow)
    head = _head("chatcmpl-", "chat.completion", body)
    if body.get("stream"):
        return _chat_events({**head, "object": "chat.completion.chunk"}, pieces)
    message = {"role": "assistant", "content": "".join(pieces)}
    return {**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": None}


def _complete(engine: Any, body: Body, follow: Follow) -> Answer:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RequestError("prompt must be a text.", "prompt")
    pieces = _pieces(engine.complete(prompt, _params(body)), follow)
    head = _head("cmpl-", "text_completion", body)
    if body.get("stream"):
        return _events(
            {**head, "choices": [{"index": 0, "text": text, "finish_reason": end}]} for text, end in _ended(pieces)
        )
    return {**head, "choices": [{"index": 0, "text": "".join(pieces), "finish_reason": "stop"}], "usage": None}


def _params(body: Body) -> Body:
    if body.get("n") not in (None, 1):
        raise RequestError("This engine gives one choice for each request.", "n")
    return {name: value for name, value in body.items() if name not in NOT_PARAMS}


def _head(prefix: str, kind: str, body: Body) -> Body:
    created = int(time.time())
    return {"id": f"{prefix}{uuid.uuid4().hex}", "object": kind, "created": created, "model": body.get("model")}


def _pieces(result: Any, follow: Follow) -> Iterator[str]:
    for piece in follow([result] if isinstance(result, str) else result):
        if not isinstance(piece, str):
            raise TypeError(f"the engine gave a piece of text that is a {type(piece).__name__}")
        yield piece


def _ended(pieces: Iterator[str]) -> Iterator[tuple[str, str | None]]:
    for piece in pieces:
        yield piece, None
    yield "", "stop"


def _chat_events(head: Body, pieces: Iterator[str]) -> Events:
    def chunks() -> Iterator[Body]:
        role: Body = {"role": "assistant"}
        for text, end in _ended(pieces):
            delta = {} if end else {**role, "content": text}
            role = {}
            yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}

    return _events(chunks())


def _events(chunks: Iterable[Body]) -> Events:
    for chunk in chunks:
        yield event(chunk)
    yield DONE


def event(chunk: Body) -> bytes:
    return b"data: " + dump(chunk) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def dump(value: Any) -> bytes:
    """Raises ValueError for what JSON has no word for: NaN and the infinite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


# Vectors and scores


def _embeddings(engine: Any, body: Body, follow: Follow) -> Answer:
    if body.get("dimensions") is not None:
        raise RequestError("This engine does not shorten its vectors.", "dimensions")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise RequestError("encoding_format must be float or base64.", "encoding_format")
    vectors = _vectors(engine, _texts(body, "input"))
    shown: list[Any] = vectors if form == "float" else [_base64(vector) for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)]
    return {"object": "list", "data": data, "model": body.get("model"), "usage": None}


def _embed(engine: Any, body: Body, follow: Follow) -> Answer:
    return _vectors(engine, _texts(body, "inputs"))


def _vectors(engine: Any, texts: list[str]) -> list[list[float]]:
    return [_numbers(vector) for vector in _as_many(engine.embed(texts), len(texts), "vectors")]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _numbers(values: Any) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("the engine gave a number that is not finite")
    return numbers


def _as_many(values: Any, count: int, what: str) -> list[Any]:
    found = list(values)
    if len(found) != count:
        raise ValueError(f"the engine gave {len(found)} {what} for {count} texts")
    return found


def _texts(body: Body, name: str) -> list[str]:
    given = body.get(name)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name} must be a text, or a list of texts.", name)
    return texts


def _scores(engine: Any, query: Any, documents: list[str]) -> list[float]:
    if not isinstance(query, str):
        raise RequestError("query must be a text.", "query")
    return _numbers(_as_many(engine.rerank(query, documents), len(documents), "scores"))


def _rerank(engine: Any, body: Body, follow: Follow) -> Answer:
    """As Jina, and Cohere, have it."""
    given = body.get("documents")
    parts = [part.get("text") if isinstance(part, dict) else part for part in given] if isinstance(given, list) else []
    documents = _texts({"documents": parts}, "documents")
    top_n = body.get("top_n")
    if top_n is not None and not (isinstance(top_n, int) and top_n > 0):
        raise RequestError("top_n must be a number of results, 1 or more.", "top_n")
    ranked = _ranked(_scores(engine, body.get("query"), documents))
    results: list[Body] = [{"index": index, "relevance_score": score} for index, score in ranked][:top_n]
    if body.get("return_documents"):
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    return {"id": f"rerank-{uuid.uuid4().hex}", "model": body.get("model"), "results": results, "usage": None}


def _ranked(scores: list[float]) -> list[tuple[int, float]]:
    return sorted(enumerate(scores), key=lambda scored: -scored[1])


def _rerank_texts(engine: Any, body: Body, follow: Follow) -> Answer:
    """As text-embeddings-inference has it, on a path that Jina has, too."""
    if "texts" not in body:
        return _rerank(engine, body, follow)
    texts = _texts(body, "texts")
    return [{"index": index, "score": score} for index, score in _ranked(_scores(engine, body.get("query"), texts))]


def _classify(engine: Any, body: Body, follow: Follow) -> Answer:
    texts = _texts(body, "input")
    data = []
    for index, labels in enumerate(_as_many(engine.classify(texts), len(texts), "classifications")):
        probs = _numbers(labels.values())
        label = max(labels, key=labels.get)
        data.append({"index": index, "label": label, "probs": probs, "num_classes": len(probs)})
    return {"object": "list", "data": data, "model": body.get("model"), "usage": None}


METHODS = ("chat", "complete", "embed", "rerank", "classify", "predict")
INFER = "/v2/models/{name}/infer"
ROUTES: dict[str, tuple[str, Route]] = {
    "/v1/chat/completions": ("chat", _chat),
    "/v1/completions": ("complete", _complete),
    "/v1/embeddings": ("embed", _embeddings),
    "/embed": ("embed", _embed),
    "/v1/rerank": ("rerank", _rerank),
    "/v2/rerank": ("rerank", _rerank),
    "/rerank": ("rerank", _rerank_texts),
    "/v1/classify": ("classify", _classify),
    "/classify": ("classify", _classify),
}


# Errors, in the form of the protocol that the route is of


def error(path: str, message: str, status: int, kind: str, param: str | None, code: str | None) -> Body:
    if path.startswith("/v2/models/"):
        return {"error": message}
    if path in ("/v1/messages", "/v1/messages/count_tokens"):
        return {"type": "error", "error": {"type": kind, "message": message}}
    if path in ("/v2/rerank", "/v2/embed"):
        return {"message": message}
    if path in ("/embed", "/embed_all", "/embed_sparse", "/predict"):
        return {"error": message, "error_type": "validation" if status < 500 else "backend"}
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
