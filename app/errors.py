"""Renders every error once, in the protocol of the client; and the errors that only HTTP knows.

RequestError (RoundhouseError)
├── InvalidRequest      400
├── Unauthorized        401
├── Forbidden           403
├── NotFound            404
├── MethodNotAllowed    405
├── SlowRequest         408
└── TooLarge            413
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from app.routes import INFO, ROUTES
from models.errors import RoundhouseError
from utils.openai_compat import Protocol, error_event, error_object

Header = tuple[bytes, bytes]
DEFAULT_RETRY_S = 1.0
ANTHROPIC_PREFIX = "/v1/messages"
KSERVE_PREFIX = "/v2"  # beside which Cohere's routes are, in ROUTES


class RequestError(RoundhouseError):
    """A request that is refused before any model is asked. `headers` go into the answer."""

    status, type, code = 400, "invalid_request_error", "invalid_request"
    headers: Sequence[Header] = ()


class InvalidRequest(RequestError):
    pass


class Unauthorized(RequestError):
    status, type, code = 401, "authentication_error", "invalid_api_key"
    headers = ((b"www-authenticate", b"Bearer"),)


class Forbidden(RequestError):
    status, type, code = 403, "permission_error", "forbidden"


class NotFound(RequestError):
    status, code = 404, "not_found"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"{path} does not take {method}; it takes {allowed}.")
        self.headers = ((b"allow", allowed.encode()),)


class SlowRequest(RequestError):
    status, code = 408, "request_timeout"
    headers = ((b"connection", b"close"),)


class TooLarge(RequestError):
    status, code = 413, "request_too_large"


@dataclass(frozen=True, slots=True)
class Rendered:
    status: int
    headers: list[Header]
    body: bytes


def protocol_of(path: str) -> Protocol:
    """That of the clients who use `path`, also where there is no such route."""
    if path == ANTHROPIC_PREFIX or path.startswith(ANTHROPIC_PREFIX + "/"):
        return "anthropic"
    route = INFO if path == INFO.path else ROUTES.get(path)
    if route is not None:
        return route.protocol
    return "kserve" if is_kserve(path) else "openai"


def is_kserve(path: str) -> bool:
    """Whether `path`, which is none of ROUTES, is for clients of KServe V2."""
    return path == KSERVE_PREFIX or path.startswith(KSERVE_PREFIX + "/")


def _object(error: RoundhouseError, protocol: Protocol, request_id: str) -> dict[str, object]:
    return error_object(
        protocol,
        error.status,
        error.message,
        type_=error.type,
        code=error.code,
        param=error.param,
        request_id=request_id,
    )


def render(error: RoundhouseError, protocol: Protocol, request_id: str = "") -> Rendered:
    """Status, headers and JSON body of `error`; every 503 tells when to come back."""
    body = orjson.dumps(_object(error, protocol, request_id))
    headers: list[Header] = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += getattr(error, "headers", ())
    if error.status == 503 or error.retry_after_s is not None:
        seconds = error.retry_after_s if error.retry_after_s is not None else DEFAULT_RETRY_S
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(min(seconds, 86400.0)))))
    return Rendered(error.status, headers, body)


def render_event(error: RoundhouseError, protocol: Protocol, request_id: str = "") -> bytes:
    """`error` as the last event of a stream that had begun."""
    return error_event(protocol, _object(error, protocol, request_id))


def internal_error(request_id: str) -> RoundhouseError:
    """What a client learns of a fault of ours: nothing but the number under which the log tells it."""
    return RoundhouseError(f"Internal error; the server's log tells it under request id {request_id}.")
