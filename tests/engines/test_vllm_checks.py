"""When vLLM is asked whether it would start, and how long its answer counts. What it answers: tests/e2e."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from engines.base import EngineContext, EngineStartError, ExitReport
from engines.launcher import Launcher
from engines.vllm_checks import StartChecks
from models.types import ModelOverrides, ModelSpec, Task

FINE, REFUSED = ExitReport("ended", 0), ExitReport("No such file: head/model.safetensors", 1)


class FakeLauncher:
    """Each process that it starts is told by `asked`, and ends with `report`."""

    name = "vllm"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.report = FINE
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.stopped = 0

    async def spawn(self, request: Any) -> FakeLauncher:
        self.asked.append(request.name)
        return self

    async def wait_exited(self) -> ExitReport:
        await self.may_end.wait()
        return self.report

    async def stop(self, grace_s: float) -> None:
        self.stopped += 1


def spec(**overrides: Any) -> ModelSpec:
    return ModelSpec("m", Path("/m"), Task.CHAT, "vllm", overrides=ModelOverrides(**overrides))


def checks(
    launcher: FakeLauncher,
    folder: Path,
    arguments: Callable[[ModelSpec], Sequence[str]] = lambda _: (),
    **settings: Any,
) -> StartChecks:
    context = EngineContext(Path("/tmp"), folder, folder, "cpu")  # no socket is made, but its path is looked at
    return StartChecks(cast(Launcher, launcher), context, lambda _: True, arguments, **settings)


async def refusal(made: StartChecks, model: ModelSpec) -> str:
    with pytest.raises(EngineStartError) as caught:
        await made.check(model)
    return str(caught.value)


async def test_what_passed_is_asked_again_only_if_it_would_be_started_otherwise(tmp_path: Path) -> None:
    launcher = FakeLauncher()
    made = checks(launcher, tmp_path)
    for model in (spec(), spec(), spec(priority=3, keep_alive_s=60.0), replace(spec(), reasons=("found",))):
        await made.check(model)
        assert made.passed(model)
    assert len(launcher.asked) == 1
    assert not made.passed(spec(engine_args={"seed": 1}))
    assert not made.passed(replace(spec(), fingerprint="another"))


async def test_a_refusal_is_told_to_all_and_found_out_anew_after_a_while(tmp_path: Path) -> None:
    launcher = FakeLauncher()
    launcher.report = REFUSED
    made = checks(launcher, tmp_path)
    told = await asyncio.gather(*(refusal(made, spec()) for _ in range(3)))
    assert all("No such file: head/model.safetensors" in each for each in [*told, await refusal(made, spec())])
    assert len(launcher.asked) == 1
    soon = checks(launcher, tmp_path, refused_s=-1.0)
    await refusal(soon, spec())
    launcher.report = FINE
    await soon.check(spec())
    assert soon.passed(spec())


async def test_settings_that_cannot_be_written_as_arguments_are_refused_as_often_as_asked(tmp_path: Path) -> None:
    def date(_: ModelSpec) -> Sequence[str]:
        raise TypeError("Object of type date is not JSON serializable")

    made = checks(FakeLauncher(), tmp_path, date, refused_s=-1.0)
    assert [await refusal(made, spec()) for _ in range(2)] == ["Object of type date is not JSON serializable"] * 2


async def test_the_end_ends_every_check_and_its_process(tmp_path: Path) -> None:
    launcher = FakeLauncher()
    launcher.may_end.clear()
    made = checks(launcher, tmp_path)
    waiting = [asyncio.create_task(made.check(model)) for model in (spec(), spec(engine_args={"seed": 1}))]
    async with asyncio.timeout(10):
        while len(launcher.asked) < len(waiting):  # noqa: ASYNC110 - their arguments are written in threads
            await asyncio.sleep(0.001)
        await made.close()
    assert launcher.stopped == len(waiting)
    await asyncio.wait(waiting, timeout=10)
    assert all(task.cancelled() for task in waiting)
