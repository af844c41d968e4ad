"""What servers elsewhere that speak OpenAI's API say that they have (`GET …/models`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from engines.remote.remote_factory import NoList
from models.discovery.evidence import task_by_name
from models.types import Task

ANSWER_TIMEOUT_S = 5.0
MAX_BYTES = 8 << 20
MAX_MODELS = 5000  # one more, and it is no list of models
MAX_NAME = 512
SERVED = frozenset({Task.CHAT, Task.COMPLETION, Task.EMBED, Task.RERANK, Task.CLASSIFY})

AT_ROOT = " (with a url that names no path, not even /, it is asked at /v1)"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server says of one model."""

    task: Task
    task_told: bool  # rather than guessed by its name
    max_model_len: int | None = None
    created_s: int = 0


async def ask(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], proxy: str | None = None
) -> dict[str, Listing]:
    """The models of the server whose API is at `url`. Raises NoList; takes a few seconds at most."""
    path = urlsplit(url).path
    what = f"GET {path}/models"
    try:
        async with (
            asyncio.timeout(ANSWER_TIMEOUT_S),
            session.get(f"{url}/models", headers=headers, proxy=proxy, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise NoList(f"status {answer.status}{'' if path else AT_ROOT}")
            return parse(await _read(answer))
    except NoList as error:
        raise NoList(f"{what} was answered with {error}") from None
    except TimeoutError:
        raise NoList(f"{what} had no answer within {ANSWER_TIMEOUT_S:g} s") from None
    except aiohttp.ClientHttpProxyError as error:  # whose text has the proxy's password
        raise NoList(f"{what}: the proxy answered with status {error.status}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NoList(f"{what}: {error}") from None


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for chunk in answer.content.iter_any():
        raw += chunk
        if len(raw) > MAX_BYTES:
            raise NoList(f"more than {MAX_BYTES >> 20} MiB")
    return bytes(raw)


def parse(raw: bytes) -> dict[str, Listing]:
    """Raises NoList, which says what is there instead. Models that only that server could use are left out."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise NoList("no JSON") from None
    entries = document.get("data") if isinstance(document, dict) else document
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise NoList('no list of models: {"data": [{"id": …}, …]} is wanted')
    if len(entries) > MAX_MODELS:
        raise NoList(f"more than {MAX_MODELS} models")
    return {entry["id"]: listing for entry in entries if (listing := _listing(entry)) is not None}


def _listing(entry: Mapping[str, Any]) -> Listing | None:
    name, told = entry.get("id"), str(entry.get("task"))
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        return None
    if entry.get("served_elsewhere"):  # by another Roundhouse for another: two that list each other would never end
        return None
    if told == Task.ADAPTER:  # its own server puts it into its base
        told = Task.CHAT
    elif told in frozenset(Task) - SERVED:
        return None
    known = told in SERVED
    length, created = entry.get("max_model_len"), entry.get("created")
    return Listing(
        task=Task(told) if known else task_by_name(name),
        task_told=known,
        max_model_len=length if isinstance(length, int) and 0 < length < 1 << 53 else None,
        created_s=created if isinstance(created, int) and 0 <= created < 1 << 53 else 0,
    )
