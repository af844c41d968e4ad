"""What servers elsewhere answer: anything. Read before it is passed on, as far as that holds up nobody.

Our own engines are trusted to speak their protocols, and their answers pass byte for byte. So do those of others, once
it is seen that they are streams of events, or JSON, or too long to look at.
"""

from __future__ import annotations

import asyncio
import os
import re

import aiohttp
import orjson

from app.errors import InvalidRequest
from models.errors import EngineGone, Unavailable
from models.types import ModelSpec
from utils.openai_compat import Protocol

EVENT_STREAM = "text/event-stream"
CHECKED_BYTES = 1 << 20  # longer answers (embeddings) pass as they come
SHOWN_CHARS = 120
FIRST_ERROR = 400  # of HTTP's statuses
FIRST_FAILURE = 500  # of those that are the engine's fault …
LOOP = 508  # … but for this one, which says it of a model alone
UNAUTHORIZED, PROXY_UNAUTHORIZED = 401, 407
KEY_RETRY_S = 60.0  # until somebody has changed the key
UNSENDABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # in a header: uvicorn would break off with it
# Protocols by the field that each of their errors has.
ERROR_FIELDS: dict[Protocol, str] = {
    "openai": "error",
    "responses": "error",
    "anthropic": "error",
    "cohere": "message",
    "tei": "error",
    "kserve": "error",
}


class NoAnswer(EngineGone):
    """`said`, the beginning of what came in place of one, is for this client alone, and `why` for everybody."""

    def __init__(self, message: str, why: str, said: str = "") -> None:
        super().__init__(message + said + ".")
        self.why = why


def is_failure(status: int) -> bool:
    """Whether it counts against the engine."""
    return status >= FIRST_FAILURE and status != LOOP


async def read_checked(response: aiohttp.ClientResponse, spec: ModelSpec, protocol: Protocol) -> bytes:
    """The beginning of the answer's body: all of it where that was checked, nothing of a stream.

    Raises NoAnswer for what is no answer, Unavailable and InvalidRequest for refusals (statuses 400 to 499) that
    clients of `protocol` cannot read, and aiohttp's errors where it breaks off.
    """
    who, status = f"The server of '{spec.id}'", response.status
    if status == UNAUTHORIZED:  # what it says of our key is not for clients
        text = f"{who} refuses the key that it was given, or wants one. See api_key_env of {spec.engine}."
        raise Unavailable(text, retry_after_s=KEY_RETRY_S)
    if status == PROXY_UNAUTHORIZED:  # http:// by a proxy; clients would take it for one of their own
        text = f"The proxy to the server of '{spec.id}' refuses us (status {status}). See HTTP_PROXY."
        raise Unavailable(text, retry_after_s=KEY_RETRY_S)
    check_head(response, spec)
    if status < FIRST_ERROR and (response.content_type == EVENT_STREAM or "Content-Encoding" in response.headers):
        return b""
    body = await read_up_to(response.content, CHECKED_BYTES)
    if len(body) == CHECKED_BYTES:
        return body
    try:
        document, what = orjson.loads(body), ""
    except orjson.JSONDecodeError:
        document, what = None, " and no JSON"
    told = isinstance(document, dict) and ERROR_FIELDS[protocol] in document
    if what or (status >= FIRST_ERROR and not told):
        what, said = f"answered with status {status}{what}", f": {shown(body)}"
        if FIRST_ERROR <= status < FIRST_FAILURE:
            raise InvalidRequest(f"{who} {what}{said}.")
        raise NoAnswer(f"{who} {what}", f"it {what}", said)
    return body


def check_head(response: aiohttp.ClientResponse, spec: ModelSpec) -> None:
    """Raises NoAnswer for a status or headers that cannot be passed on."""
    who, status = f"The server of '{spec.id}'", response.status
    if not (200 <= status < 300 or status >= FIRST_ERROR):
        what = f"wants the request to be sent elsewhere (status {status}). See the url of {spec.engine}"
        raise NoAnswer(f"{who} {what}", f"it {what}")
    if any(UNSENDABLE.search(value) for _, value in response.raw_headers):
        what = "answered with a header that has control characters"
        raise NoAnswer(f"{who} {what}", f"it {what}")


def shown(raw: bytes) -> str:
    """The beginning of what a server said, on one line."""
    text = " ".join(raw[: 4 * SHOWN_CHARS].decode("utf-8", "replace").split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return repr(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")


async def read_up_to(content: aiohttp.StreamReader, limit: int) -> bytes:
    try:
        return await content.readexactly(limit)
    except asyncio.IncompleteReadError as all_there_is:
        return all_there_is.partial


def why_unreached(
    error: aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.ClientHttpProxyError,
) -> str:
    """A phrase for people."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"its proxy (HTTPS_PROXY) answered with status {error.status}"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        known = isinstance(cause, ConnectionError) and cause.errno  # asyncio's text names the address once more
        what = os.strerror(known) if known else cause.strerror or str(cause)
        whose = "its proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        return f"no connection to {whose}{error.host}:{error.port}: {what}"
    return "no connection to it in time (upstream_connect_timeout_s)"
