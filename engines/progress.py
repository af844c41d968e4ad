"""What an engine has done so far, asked of itself and of the kernel: so a busy one is told from one that hangs.

An engine with nothing to do looks like one that hangs: both finish no step. So after NUDGE_AFTER_S without one it is
asked for the least that it can do, and an engine that lives has then made a step.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from models.types import Method, Progress, Task
from utils import procfs

ASK_TIMEOUT_S = 4.0  # for figures, which are made without a step
NUDGE_AFTER_S = 6.0
NUDGE_TIMEOUT_S = 3.0
# What moves in vLLM at each step. A long prompt is computed in several that put nothing out: only its cache fills.
_VLLM_FIGURES = re.compile(
    rb"^vllm:(?:iteration_tokens_total_count|generation_tokens_total|prompt_tokens_total|kv_cache_usage_perc)"
    rb"(?:\{[^}]*\})? (\S+)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Questions:
    """How one kind of engine is asked: `GET path`, of which `steps` makes a number; `POST nudge_path`, for one step.

    One without `nudge_path` is never asked to do something.
    """

    path: str
    steps: Callable[[bytes], float]
    nudge_path: str = ""
    nudge_body: Mapping[str, Any] = field(default_factory=dict)


def vllm_questions(model: str) -> Questions:
    body = {"model": model, "prompt": [1], "max_tokens": 1}
    return Questions("/metrics", vllm_steps, "/v1/completions", body)


# The least that a retrieval engine can be asked for, by what it is for; embeddings, where nothing else is said.
_LEAST: Mapping[Task | Method | None, tuple[str, Mapping[str, Any]]] = {
    Task.RERANK: ("/v1/rerank", {"query": "a", "documents": ["a"]}),
    Task.CLASSIFY: ("/v1/classify", {"input": "a"}),
    Method.SPARSE: ("/embed_sparse", {"inputs": "a"}),
    Method.MULTI_VECTOR: ("/v1/multi-vector", {"input": "a"}),
}


def transformers_questions(model: str, task: Task, method: Method | None = None) -> Questions:
    path, body = _LEAST.get(method) or _LEAST.get(task) or ("/v1/embeddings", {"input": "a"})
    return Questions("/engine/progress", float, path, {"model": model, **body})


def vllm_steps(metrics: bytes) -> float:
    """A number that changes with each step. Raises ValueError where the metrics lack the figures."""
    figures = [float(figure) for figure in _VLLM_FIGURES.findall(metrics)]
    if not figures:
        raise ValueError("no figures of steps among vLLM's metrics")
    return sum(figures)


class Pulse:
    """The progress of one engine, from its start to its end. See engines.base.Engine.progress."""

    def __init__(self, uds: Path, questions: Questions | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._uds = uds
        self._questions = questions
        self._clock = clock
        self._steps: float | None = None
        self._stepped_s = clock()
        self._answers = 0  # to nudges, each of which is a step, told or not

    async def look(self, pids: Sequence[int]) -> Progress:
        """`pids`: the engine's processes now."""
        cpu_s, stopped = await asyncio.to_thread(_processes, pids)
        if stopped or self._questions is None:  # stopped, it could not answer
            return Progress(None, cpu_s, stopped)
        steps = await self._ask(self._questions)
        if steps != self._steps:
            self._steps, self._stepped_s = steps, self._clock()
        elif self._clock() - self._stepped_s >= NUDGE_AFTER_S and await self._nudge(self._questions):
            self._answers += 1
        return Progress(None if steps is None else steps + self._answers, cpu_s)

    async def _ask(self, questions: Questions) -> float | None:
        try:
            async with self._session(ASK_TIMEOUT_S) as session, session.get(questions.path) as response:
                return questions.steps(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    async def _nudge(self, questions: Questions) -> bool:
        """Whether it answered; what, does not matter."""
        if not questions.nudge_path:
            return False
        try:
            async with (
                self._session(NUDGE_TIMEOUT_S) as session,
                session.post(questions.nudge_path, json=questions.nudge_body) as response,
            ):
                await response.read()
                return True
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _session(self, timeout_s: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            "http://engine",
            connector=aiohttp.UnixConnector(str(self._uds)),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        )


def any_stopped(pids: Iterable[int]) -> bool:
    """Whether one of the processes is stopped, by a SIGSTOP or a debugger."""
    return _processes(pids)[1]


def _processes(pids: Iterable[int]) -> tuple[float, bool]:
    """CPU time of all of them, and whether one is stopped."""
    found = [info for pid in pids if (info := procfs.read_process(pid)) is not None]
    return sum(info.cpu_s for info in found), any(info.stopped for info in found)
