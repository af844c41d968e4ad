"""Embeddings and reranking beside chat models of which one fits at a time: real engines, real swaps."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bench._load import Clients, clients
from bench._observer import Observer, observing
from bench._servers import Server
from demo import facts
from tests.e2e import chat
from tests.e2e.conftest import Start

PATIENCE_S = 150
CHATS = (facts.QWEN3, facts.LLAMA)
SAMPLE = facts.RERANK_SAMPLES[0]
QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    facts.EMBEDDER: ("/v1/embeddings", {"model": facts.EMBEDDER, "input": SAMPLE.query}),
    facts.RERANKER: (
        "/v1/rerank",
        {"model": facts.RERANKER, "query": SAMPLE.query, "documents": list(SAMPLE.documents)},
    ),
}


def tight_budget_bytes(server: Server) -> int:
    """Room for one chat model beside both retrieval models, by what `server` expects each to take."""
    estimates = {model: server.get(f"/v1/models/{model}")["estimated_bytes"] for model in (*QUERIES, *map(_id, CHATS))}
    largest = max(estimates[_id(model)] for model in CHATS)
    return int(largest * 1.3 + sum(estimates[model] for model in QUERIES))


def _id(model: facts.ChatModel) -> str:
    return model.id


@asynccontextmanager
async def asking(one: Clients, model: str) -> AsyncIterator[list[float]]:
    """A client that asks again as soon as it is answered; the times of its answers. An error of it is raised at the
    end of the block."""
    path, body = QUERIES[model]
    answered: list[float] = []
    over = asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            await one.post(path, body)
            answered.append(time.monotonic())

    task = asyncio.create_task(ask())
    try:
        yield answered
    finally:
        over.set()
        await task


def swaps(observer: Observer) -> list[tuple[float, float]]:
    """(one chat model begins to leave, the next is ready), for each swap."""
    ids = [model.id for model in CHATS]
    changes = [change for change in observer.changes if change.model in ids]
    left = [change.time_s for change in changes if change.before == "ready"]
    ready = [change.time_s for change in changes if change.after == "ready"]
    return [(begun, next(end for end in ready if end > begun)) for begun in left]


def moves(observer: Observer, models: Iterable[str]) -> list[tuple[str, str]]:
    """Every change of a state of `models`: (model, after)."""
    return [(change.model, change.after) for change in observer.changes if change.model in set(models)]


@pytest.mark.timeout(300)
async def test_retrieval_models_load_without_touching_chat_stay_and_serve_while_chat_swaps(
    server: Server, start: Start
) -> None:
    with start(memory_budget_bytes=tight_budget_bytes(server)) as tight:
        tight.wait_warm()
        async with (
            asyncio.timeout(PATIENCE_S),
            clients(tight.url) as one,
            chat.session(tight) as session,
            observing(tight.url) as observer,
        ):
            first, second = CHATS
            assert await chat.ask(session, first.id, facts.WHICH_MODEL) == first.answers[facts.WHICH_MODEL]
            async with chat.stream(session, first.id, facts.LONG_QUESTION) as pieces:
                text = await anext(pieces)
                for path, body in QUERIES.values():  # both are cold
                    await one.post(path, body)
                text += "".join([piece async for piece in pieces])
            assert text == facts.LONG_ANSWER
            assert {after for _, after in moves(observer, [first.id])} <= {"loading", "ready"}

            async with asking(one, facts.EMBEDDER) as embedded, asking(one, facts.RERANKER) as reranked:
                for model in (second, first, second):
                    assert await chat.ask(session, model.id, facts.WHICH_MODEL) == model.answers[facts.WHICH_MODEL]
    assert sorted(moves(observer, QUERIES)) == sorted(itertools.product(QUERIES, ("loading", "ready")))
    assert len(swaps(observer)) == 3
    for begun_s, ready_s in swaps(observer):
        for answered in (embedded, reranked):
            assert sum(begun_s < at_s < ready_s for at_s in answered) > 1
