"""Requests of our own to an engine, on its private socket. What clients send goes through the data plane instead."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson

log = logging.getLogger(__name__)

AGAIN_S = 0.5  # by then memory that another engine gave back is free
MAX_CAUSE_CHARS = 300  # of an engine's own words in an error of ours


class EngineCallFailed(Exception):
    """The engine refused, failed or ended; the message says on which path, and its own words for it.

    `status`: of its answer, None where it gave none; `words`: what it says there by itself.
    """

    def __init__(self, message: str, status: int | None = None, words: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.words = words


async def call(uds: Path, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None) -> Any:
    """The JSON of a 200 answer, None where it is empty. Raises EngineCallFailed; without a time limit of its own."""
    text = await _answer(uds, method, path, query, body)
    try:
        return orjson.loads(text) if text else None
    except orjson.JSONDecodeError as error:
        raise EngineCallFailed(f"{path} answered no JSON: {error}") from error


async def post(uds: Path, path: str, body: object) -> None:
    """For routes that answer in words. Raises EngineCallFailed; without a time limit of its own."""
    await _answer(uds, "POST", path, (), body)


async def _answer(uds: Path, method: str, path: str, query: Sequence[tuple[str, str]], body: object) -> bytes:
    data = None if body is None else orjson.dumps(body)
    headers = {} if body is None else {"Content-Type": "application/json"}
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(uds)), timeout=aiohttp.ClientTimeout(total=None)
            ) as session,
            session.request(method, f"http://engine{path}", params=query, data=data, headers=headers) as response,
        ):
            text = await response.read()
            if response.status != 200:
                message = f"{path} answered {response.status}: {_excerpt(text)}"
                raise EngineCallFailed(message, response.status, _words(text))
            return text
    except (aiohttp.ClientError, OSError) as error:
        raise EngineCallFailed(f"{path}: {str(error) or type(error).__name__}") from error


async def post_twice(uds: Path, path: str, query: Sequence[tuple[str, str]] = ()) -> None:
    """For coming back to the device, which may lack the memory at first: what came back stays, the rest is tried again.

    Raises EngineCallFailed.
    """
    try:
        await call(uds, "POST", path, query=query)
    except EngineCallFailed as error:
        log.warning("%s: %s; trying again", uds.name, error)
        await asyncio.sleep(AGAIN_S)
        await call(uds, "POST", path, query=query)


def _words(text: bytes) -> str:
    """The message of an error in OpenAI's envelope, or the whole answer."""
    try:
        message = orjson.loads(text)["error"]["message"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return _excerpt(text)
    return _excerpt(str(message).encode())


def _excerpt(text: bytes) -> str:
    words = " ".join(text.decode(errors="replace").split())
    return words[:MAX_CAUSE_CHARS] or "nothing"
