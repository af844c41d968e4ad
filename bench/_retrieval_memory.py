"""What the engines of an embedding model and a reranker hold before, while and after they are asked for too much."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bench import _report
from bench._embedding import at_once, texts
from bench._load import Clients, clients
from bench._servers import Server
from demo.facts import EMBEDDER, RERANKER
from utils import procfs

INPUTS, INPUT_TOKENS = 2048, 8000
DOCUMENTS = 10_000
LONG_TEXT_BYTES = 10**6
TIMES = 2  # each request: what is kept for good shows in the second, what is lost grows with it
POLL_S = 0.1
WARM_ROUNDS = 6  # enough for the engines to give back what they freed: they do not care about a little
CALM_S = 5.0  # after ordinary work, for what it freed to go back
SETTLE_S = 15.0  # for memory to come back
MIB = 2**20


@dataclass(slots=True)
class Gauge:
    """The memory (PSS) of one process."""

    pid: int
    before: int = 0
    peak: int = 0
    after: int = 0

    def read(self) -> int:
        held = procfs.pss_bytes(self.pid)
        self.peak = max(self.peak, held)
        return held


@dataclass(slots=True)
class Gauges:
    """Of the router's process and of each engine's."""

    of: dict[str, Gauge] = field(default_factory=dict)

    def read(self) -> dict[str, int]:
        return {name: gauge.read() for name, gauge in self.of.items()}


@asynccontextmanager
async def watching(gauges: Gauges) -> AsyncIterator[None]:
    """Reads them all the time, for their peaks."""

    async def watch() -> None:
        while True:
            await asyncio.to_thread(gauges.read)
            await asyncio.sleep(POLL_S)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def requests(scale: float) -> dict[str, tuple[str, dict[str, Any], int | None]]:
    """Path, body and the status that must come (None: any from the 4xx, or 200)."""
    long = "a " * INPUT_TOKENS
    documents = texts(round(DOCUMENTS * scale))
    inputs = [long] * round(INPUTS * scale)
    embed, rerank = {"model": EMBEDDER}, {"model": RERANKER, "query": "a quiet river"}
    whole = "of " * (LONG_TEXT_BYTES // 3)
    cut = {"truncate_prompt_tokens": -1}
    return {
        f"{len(inputs)} inputs of {INPUT_TOKENS} tokens": ("/v1/embeddings", embed | {"input": inputs}, 400),
        "… cut": ("/v1/embeddings", embed | cut | {"input": inputs}, 200),
        "an input of 1 MB": ("/v1/embeddings", embed | {"input": whole}, 400),
        "… cut to the model's limit": ("/v1/embeddings", embed | cut | {"input": whole}, 200),
        "an empty input": ("/v1/embeddings", embed | {"input": ""}, None),
        f"{len(documents)} documents": ("/v1/rerank", rerank | {"documents": documents}, 200),
        "a document of 1 MB": ("/v1/rerank", rerank | {"documents": [whole]}, 400),
        "… cut, as it should be": ("/v1/rerank", rerank | cut | {"documents": [whole]}, 200),
        "an empty document": ("/v1/rerank", rerank | {"documents": [""]}, None),
    }


async def ask(one: Clients, scale: float) -> list[tuple[str, int, float]]:
    """What each request was answered with, and the seconds. Raises RuntimeError for another status than must come."""
    rows = []
    for name, (path, body, expected) in requests(scale).items():
        began = time.monotonic()
        status, answer = await one.answered(path, body)
        if status >= 500 or expected not in (None, status):
            raise RuntimeError(f"{name}: {path} was answered {status}: {answer[:1000].decode(errors='replace')}")
        rows.append((name, status, time.monotonic() - began))
    return rows


async def _warm(one: Clients) -> None:
    """Ordinary work of both models: short texts, and some as long as the models take."""
    documents = texts(128)
    long = {"truncate_prompt_tokens": -1}
    for _ in range(WARM_ROUNDS):
        await at_once(one, EMBEDDER, documents)
        await one.post("/v1/embeddings", long | {"model": EMBEDDER, "input": ["of " * 600] * 16})
        body = {"model": RERANKER, "query": "a quiet river", "documents": documents + ["of " * 3000] * 16}
        await one.post("/v1/rerank", body | long)


async def engines(server: Server, one: Clients) -> Gauges:
    """Loads both models, one after the other, and finds their processes."""
    pid = server.process.pid
    gauges = Gauges({"router": Gauge(pid)})
    for model in (EMBEDDER, RERANKER):
        await one.post("/v1/model/unload", {"model": model, "wait": True})
    for model in (EMBEDDER, RERANKER):
        there = _leaders(pid)
        await one.post("/v1/model/load", {"model": model, "wait": True})
        (engine,) = _leaders(pid) - there
        gauges.of[model] = Gauge(engine)
    return gauges


def _leaders(pid: int) -> set[int]:
    """The main processes of the launchers and engines below `pid`: each leads a session."""
    table = procfs.process_table()
    return {below for below in procfs.descendants(pid, table) if table[below].session == below}


async def memory(server: Server, scale: float) -> dict[str, float]:
    async with clients(server.url) as one:
        gauges = await engines(server, one)
        await _warm(one)
        await asyncio.sleep(CALM_S)
        for gauge in gauges.of.values():
            gauge.before = gauge.read()
        answered: list[tuple[str, int, float]] = []
        async with watching(gauges):
            for _ in range(TIMES):
                answered = await ask(one, scale)
            await _warm(one)
        await _settle(gauges)
    _report.print_table("Too much", ("", "status", "seconds"), answered)
    rows = [(name, *(held / MIB for held in (g.before, g.peak, g.after))) for name, g in gauges.of.items()]
    _report.print_table("Memory (PSS), MiB", ("", "before", "peak", "after"), rows)
    return {
        "memory_ratio": max(gauge.after / gauge.before for name, gauge in gauges.of.items() if name != "router"),
        "peak_mib": max((gauge.peak - gauge.before) / MIB for gauge in gauges.of.values()),
    }


async def _settle(gauges: Gauges) -> None:
    """Until nothing is held beyond what was before, at the latest after SETTLE_S."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        held = await asyncio.to_thread(gauges.read)
        for name, gauge in gauges.of.items():
            gauge.after = held[name]
        if all(gauge.after <= gauge.before for gauge in gauges.of.values()) or time.monotonic() > deadline:
            return
        await asyncio.sleep(POLL_S)
