"""What is asked of an engine to know whether it does anything, against a server that the test stops at will."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import pytest
from aiohttp import web

from engines import progress
from engines.process import ProcessEngine
from engines.progress import Pulse, transformers_questions, vllm_questions, vllm_steps
from models.types import Task
from tests.engines.process_support import until
from utils import procfs

QUESTIONS = transformers_questions("org/a", Task.EMBED)
METRICS = b"""# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
vllm:num_requests_running{engine="0",model_name="demo/a"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="demo/a"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="demo/a"} 684.0
vllm:generation_tokens_total{engine="0",model_name="demo/a"} 6656.0
vllm:iteration_tokens_total_count{engine="0",model_name="demo/a"} 946.0
vllm:iteration_tokens_total_sum{engine="0",model_name="demo/a"} 7116.0
"""


class Engine:
    """Answers with `steps`; a request of its own makes one, unless it `hangs`."""

    def __init__(self) -> None:
        self.steps = 0
        self.hangs = False
        self.nudges = 0

    async def progress(self, _: web.Request) -> web.Response:
        return web.Response(text=str(self.steps))

    async def embed(self, _: web.Request) -> web.Response:
        self.nudges += 1
        if self.hangs:
            await asyncio.Event().wait()
        return web.Response(status=400, text="no such model")  # an answer all the same


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[Path]:
    app = web.Application()
    app.router.add_get(QUESTIONS.path, engine.progress)
    app.router.add_post(QUESTIONS.nudge_path, engine.embed)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    with TemporaryDirectory(prefix="rh-", dir="/tmp") as folder:
        await runner.setup()
        await web.UnixSite(runner, folder + "/s").start()
        try:
            yield Path(folder, "s")
        finally:
            await runner.cleanup()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_steps_are_told_and_a_stepping_engine_is_not_nudged() -> None:
    engine, clock = Engine(), Clock()
    async with serving(engine) as uds:
        pulse = Pulse(uds, QUESTIONS, clock)
        for number in range(5):
            engine.steps = number
            clock.now_s += 2 * progress.NUDGE_AFTER_S
            assert (await pulse.look([os.getpid()])).steps == number
    assert engine.nudges == 0


async def test_an_engine_without_work_steps_when_it_is_nudged_and_one_that_hangs_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, clock = Engine(), Clock()
    async with serving(engine) as uds:
        pulse = Pulse(uds, QUESTIONS, clock)
        idle = await pulse.look([])
        clock.now_s += progress.NUDGE_AFTER_S
        assert (await pulse.look([])).steps != idle.steps
        engine.hangs = True
        monkeypatch.setattr(progress, "NUDGE_TIMEOUT_S", 0.3)
        clock.now_s += progress.NUDGE_AFTER_S
        before = await pulse.look([])
        assert await pulse.look([]) == before
    assert engine.nudges == 3


async def test_an_engine_that_does_not_answer_has_no_steps_and_raises_nothing(tmp_path: Path) -> None:
    assert (await Pulse(tmp_path / "none", QUESTIONS).look([])).steps is None
    async with serving(Engine()) as uds:
        assert (await Pulse(uds, vllm_questions("org/a")).look([])).steps is None


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


async def test_cpu_time_and_stopped_processes_of_the_tree_are_seen(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    pulse = Pulse(tmp_path / "none", None)
    looked = await pulse.look([os.getpid(), sleeper.pid])
    assert looked.cpu_s > 0
    assert not looked.stopped
    sleeper.send_signal(signal.SIGSTOP)
    await until(lambda: bool((info := procfs.read_process(sleeper.pid)) and info.stopped))
    assert (await pulse.look([os.getpid(), sleeper.pid])).stopped
    assert not (await pulse.look([os.getpid()])).stopped


async def test_the_process_table_is_read_beside_the_event_loop(tmp_path: Path) -> None:
    read_in: list[int] = []

    def pids() -> list[int]:
        read_in.append(threading.get_ident())
        return [os.getpid()]

    engine = ProcessEngine(Mock(), Mock(), tmp_path / "none", "cpu")
    engine._process = Mock(pids=pids)
    assert (await engine.progress()).cpu_s > 0
    assert threading.get_ident() not in read_in


def test_every_figure_that_moves_at_a_step_of_vllm_is_counted() -> None:
    before = vllm_steps(METRICS)
    for figure in (b"946.0", b"6656.0", b"684.0", b"0.25"):
        assert vllm_steps(METRICS.replace(figure, b"9999.5")) != before
    assert vllm_steps(METRICS.replace(b"} 7.0", b"} 8.0")) == before
    with pytest.raises(ValueError, match="figures"):
        vllm_steps(b"python_gc_collections_total 7.0\n")
