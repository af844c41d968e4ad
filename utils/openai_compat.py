"""Wire shapes of the OpenAI, Anthropic, Cohere and TEI protocols: error bodies, error events, model objects.

And the error body of KServe V2.
"""

from __future__ import annotations

from typing import Any, Literal

import orjson

# "responses": OpenAI's, whose streams have errors of their own; "tei": Hugging Face's text-embeddings-inference;
# "kserve": KServe V2, as Triton's clients speak it
Protocol = Literal["openai", "responses", "anthropic", "cohere", "tei", "kserve"]

ProgressText = Literal["off", "reasoning", "content"]

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_TEI_TYPES = {408: "Overloaded", 429: "Overloaded", 500: "Backend", 502: "Backend", 503: "Overloaded", 504: "Backend"}


def error_object(
    protocol: Protocol, status: int, message: str, *, type_: str, code: str | None, param: str | None, request_id: str
) -> dict[str, Any]:
    """The body of an error answer, as the clients of `protocol` expect it."""
    if protocol == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
        return body | ({"request_id": request_id} if request_id else {})
    if protocol == "cohere":
        return ({"id": request_id} if request_id else {}) | {"message": message}
    if protocol == "tei":
        return {"error": message, "error_type": _TEI_TYPES.get(status, "Validation")}
    if protocol == "kserve":
        return {"error": message}
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def error_event(protocol: Protocol, body: dict[str, Any]) -> bytes:
    """`body` as a server-sent event that ends a stream which had begun."""
    name = b"" if protocol == "openai" else b"event: error\n"
    data = _responses_event(body) if protocol == "responses" else body
    return name + b"data: " + orjson.dumps(data) + b"\n\n"


def _responses_event(body: dict[str, Any]) -> dict[str, Any]:
    """As OpenAI's `ResponseErrorEvent`; `error` too, at which its own packages raise what they would merely yield."""
    error = body.get("error")
    told = error if isinstance(error, dict) else {"message": str(error)}
    code = told.get("code")
    event = {"type": "error", "code": None if code is None else str(code), "message": told.get("message") or ""}
    return event | {"param": told.get("param"), "sequence_number": 0, "error": told}


def close_open_event(tail: bytes) -> bytes:
    """What must precede an event of ours so that it does not run into the one that `tail` left unfinished."""
    if not tail or tail.endswith((b"\n\n", b"\r\n\r\n")):
        return b""
    return b"\n" if tail.endswith(b"\n") else b"\n\n"


def chat_progress(stream_id: str, created_s: int, model: str, kind: ProgressText, text: str) -> bytes:
    """A chunk of a chat completion that tells `text` before the answer begins; nothing for "off".

    Without a role, which the answer's own first chunk brings: openai-python's stream helper strings two of them
    together. Reasoning stands under both names that clients look for.
    """
    if kind == "off":
        return b""
    delta = {"content": text} if kind == "content" else {"reasoning_content": text, "reasoning": text}
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return _chunk(f"chatcmpl-{stream_id}", "chat.completion.chunk", created_s, model, choice)


def completion_progress(stream_id: str, created_s: int, model: str, kind: ProgressText, text: str) -> bytes:
    """As `chat_progress`, for a text completion, which has no place for reasoning."""
    if kind != "content":
        return b""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
    return _chunk(f"cmpl-{stream_id}", "text_completion", created_s, model, choice)


def _chunk(chunk_id: str, kind: str, created_s: int, model: str, choice: dict[str, Any]) -> bytes:
    chunk = {"id": chunk_id, "object": kind, "created": created_s, "model": model, "choices": [choice]}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def model_object(model_id: str, created_s: int, **extra: Any) -> dict[str, Any]:
    """An entry of `GET /v1/models`."""
    return {"id": model_id, "object": "model", "created": created_s, "owned_by": "roundhouse"} | extra


def list_object(data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": data}
