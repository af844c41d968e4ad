"""What servers elsewhere say that they have (`GET …/models`), and the last of it, kept for when they are down."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from models.discovery.evidence import task_by_name
from models.types import Task

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 5.0
MAX_BYTES = 8 << 20
MAX_MODELS = 5000  # one more, and it is no list of models
MAX_NAME = 512
SERVED = frozenset({Task.CHAT, Task.COMPLETION, Task.EMBED, Task.RERANK, Task.CLASSIFY})

AT_ROOT = " (with a url that names no path, not even /, it is asked at /v1)"

Listed = dict[str, "Listing"]  # by the server's name of a model


class NoList(Exception):
    """A server did not say what it has; the text says why, as a phrase."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server says of one model."""

    task: Task
    task_told: bool  # rather than guessed by its name
    max_model_len: int | None = None
    created_s: int = 0


async def ask(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], proxy: str | None = None) -> Listed:
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


def parse(raw: bytes) -> Listed:
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


class KeptLists:
    """The last lists of an engine's servers, by URL, in one file. Losing it costs only what is not up at the start."""

    def __init__(self, cache_dir: Path, engine: str) -> None:
        name = hashlib.sha256(engine.encode()).hexdigest()[:16]
        self._path = cache_dir / "remote" / f"{name}.json"

    def read(self, urls: tuple[str, ...]) -> dict[str, Listed]:
        try:
            raw = orjson.loads(self._path.read_bytes())
            return {
                url: {name: _kept(entry) for name, entry in raw[url].items()}
                for url in urls
                if raw.get(url) is not None
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("cannot read %s (%s): servers are asked anew what they have", self._path, error)
            return {}

    def write(self, lists: Mapping[str, Listed]) -> None:
        kept = {url: {name: asdict(one) for name, one in listed.items()} for url, listed in lists.items()}
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(orjson.dumps(kept))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("cannot write %s (%s): what servers have is forgotten at exit", self._path, error)


def _kept(entry: Mapping[str, Any]) -> Listing:
    """Raises what `read` catches for what we cannot have written."""
    length = entry["max_model_len"]
    return Listing(
        Task(entry["task"]), bool(entry["task_told"]), None if length is None else int(length), int(entry["created_s"])
    )
