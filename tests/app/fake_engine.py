"""Engines at the EngineFactory seam that are real HTTP servers on unix sockets, in this process.

What an engine does with a request is told by the request itself, in `fake`: {"answer"|"stream"|"slow"|…: …}; or in
`fake` of its first message, which passes where other fields do not.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from engines.base import Endpoint, EngineContext, ExitReport, RetrievalFacts, Verdict
from models.types import LoadReport, ModelSpec, Progress, SleepReport

MEMORY_BYTES = 1000
LAST_WORDS = b"I am dying"


@dataclass
class Seen:
    """A request as the engine got it."""

    path: str
    headers: Mapping[str, str]
    raw: bytes
    aborted: asyncio.Event = field(default_factory=asyncio.Event)


class FakeEngine:
    def __init__(self, factory: FakeFactory, spec: ModelSpec, number: int) -> None:
        self.spec = spec
        self._factory = factory
        self._path = factory.context.run_dir / f"fake{number}.sock"
        self._runner: web.ServerRunner | None = None
        self._exited = asyncio.Event()
        self.endpoint = Endpoint(uds=self._path, last_words=(LAST_WORDS,))

    async def start(self, timeout_s: float) -> LoadReport:
        await self._factory.may_load.wait()
        if error := self._factory.load_errors.get(self.spec.id):
            raise error
        server = web.Server(self._handle, handler_cancellation=True, keepalive_timeout=5.0)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()
        self._factory.loads.append(self.spec.id)
        return LoadReport(0.01, "fork")

    async def stop(self, grace_s: float) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
        self._path.unlink(missing_ok=True)
        self._exited.set()

    async def close_idle(self) -> None:
        """As a server whose keep-alive time is over."""
        assert self._runner is not None
        for connection in list(self._runner.server.connections):  # type: ignore[union-attr]
            if connection.transport is not None:
                connection.transport.close()
        await asyncio.sleep(0)

    async def die(self) -> None:
        """As a killed process: every connection breaks, the socket stays behind."""
        assert self._runner is not None
        for connection in list(self._runner.server.connections):  # type: ignore[union-attr]
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)
        await self.stop(0.0)

    async def sleep(self, level: int, timeout_s: float) -> SleepReport:
        raise NotImplementedError

    async def wake(self, timeout_s: float) -> float:
        raise NotImplementedError

    async def progress(self) -> Progress:
        return Progress(None, 0.0)

    async def health(self) -> bool:
        return self._runner is not None

    def memory_bytes(self) -> int:
        return MEMORY_BYTES

    async def wait_exited(self) -> ExitReport:
        await self._exited.wait()
        return ExitReport("it was told to")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.content.read()
        seen = Seen(request.path_qs, dict(request.headers), raw)
        self._factory.seen.append(seen)
        self._factory.arrived.set()
        try:
            return await self._act(request, _fake_of(orjson.loads(raw)), raw)
        except (asyncio.CancelledError, ConnectionError):
            seen.aborted.set()
            raise

    async def _act(self, request: web.BaseRequest, fake: dict[str, Any], raw: bytes) -> web.StreamResponse:
        if "hold" in fake:
            await self._factory.may_answer.wait()
        if "die" in fake:
            self._dying = asyncio.create_task(self.die())
            await asyncio.Event().wait()
        if "last_words_once" in fake and len(self._factory.loads) == 1:  # it ends a moment after it has said so
            self._dying = asyncio.create_task(self.die())
            return web.Response(body=b'{"error": "' + LAST_WORDS + b'"}', status=500)
        if "stream" in fake or "partial" in fake:
            return await self._stream(request, fake)
        headers = {"content-type": "application/json", "x-engine": "1", "set-cookie": "a=b", **fake.get("headers", {})}
        body = fake.get("answer", "").encode() or raw
        return web.Response(body=body, status=fake.get("status", 200), headers=headers)

    async def _stream(self, request: web.BaseRequest, fake: dict[str, Any]) -> web.StreamResponse:
        kind = "text/event-stream" if "stream" in fake else "application/json"
        response = web.StreamResponse(headers={"content-type": kind})
        response.enable_chunked_encoding()
        await response.prepare(request)
        if "die_once_before" in fake and len(self._factory.loads) == 1:
            self._dying = asyncio.create_task(self.die())
            await asyncio.Event().wait()
        for chunk in (fake.get("stream") or fake["partial"]) * fake.get("times", 1):
            await response.write(chunk.encode())
            if "apart" in fake:  # so that they are read one by one
                await asyncio.sleep(0.05)
        if "endless" in fake:
            while True:
                await response.write(b"data: x\n\n" * fake["endless"])
                await asyncio.sleep(0)
        if "die_after" in fake:
            await asyncio.sleep(0.05)
            await self.die()
        if "hold_after" in fake:
            await self._factory.may_answer.wait()
        await response.write_eof()
        return response


def _fake_of(document: dict[str, Any]) -> dict[str, Any]:
    messages = document.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    return document.get("fake") or (first.get("fake") if isinstance(first, dict) else None) or {}


class FakeFactory:
    """Takes every model; records loads and requests; loads and answers can be held back."""

    name = "fake"

    def __init__(self, context: EngineContext) -> None:
        self.context = context
        self.engines: dict[str, FakeEngine] = {}
        self.loads: list[str] = []
        self.load_errors: dict[str, Exception] = {}
        self.seen: list[Seen] = []
        self.arrived = asyncio.Event()
        self.may_load = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_load.set()
        self._numbers = itertools.count()

    def accepts(self, spec: ModelSpec) -> Verdict:
        return Verdict(True, "everything")

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        return ("engine: it is a fake",)

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return MEMORY_BYTES

    def retrieval_facts(self, spec: ModelSpec) -> RetrievalFacts:
        return RetrievalFacts("float32", "mean", ("sad", "glad"), 256, 512, 64, 1)

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> FakeEngine:
        engine = self.engines[spec.id] = FakeEngine(self, spec, next(self._numbers))
        return engine

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return ()

    async def start(self) -> None: ...

    def state(self) -> Mapping[str, Any]:
        return {"state": "ready"}

    async def close(self) -> None: ...


def context_in(folder: Path) -> EngineContext:
    return EngineContext(run_dir=folder, log_dir=folder, cache_dir=folder, device="cpu")
