"""The retrieval engine's private routes for sleeping, from the app's side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from engines.canary import Numbers, close, embedding, probabilities, scores, token_vectors, word_weights
from engines.engine_http import call, post_twice
from models.types import Method, Task

_CANARIES: Mapping[Task | Method | None, Callable[[Path, str], Awaitable[Numbers]]] = {
    Task.RERANK: scores,
    Task.CLASSIFY: probabilities,
    Method.SPARSE: word_weights,
    Method.MULTI_VECTOR: token_vectors,
}


class TransformersSleepRoutes:
    """See engines.sleeping.SleepRoutes. The only level is 1, weights in host memory."""

    def __init__(self, uds: Path, name: str, task: Task, method: Method | None = None) -> None:
        self._uds = uds
        self._name = name
        self._ask = _CANARIES.get(method) or _CANARIES.get(task) or embedding

    async def fall_asleep(self, level: int) -> None:
        await call(self._uds, "POST", "/engine/sleep")

    async def wake_up(self, level: int) -> None:
        await post_twice(self._uds, "/engine/wake")

    async def canary(self) -> Numbers:
        return await self._ask(self._uds, self._name)

    def same(self, before: Numbers, after: Numbers) -> bool:
        return close(before, after)
