"""What becomes of everybody when the scheduler trips over an event, which would be a bug of ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from models import manager as manager_module
from models.errors import InternalFault
from models.manager import ModelManager
from models.scheduling.policy import Policy
from models.scheduling.residency import Trigger
from models.scheduling.scheduler import Scheduler
from models.types import State
from tests.models.fake_engines import FakeFactory
from tests.models.managing import PATIENCE_S, A, managing, until, use

Breaks = Callable[[str], None]


@pytest.fixture
def factory() -> FakeFactory:
    return FakeFactory()


@pytest.fixture
async def manager(factory: FakeFactory, tmp_path: Path) -> AsyncIterator[ModelManager]:
    async with managing(factory, tmp_path, Policy()) as made:
        yield made


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Breaks:
    """Makes the scheduler trip over the next event of that name, once."""

    def break_next(event: str) -> None:
        def trip(*_: object, **__: object) -> None:
            monkeypatch.undo()
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(Scheduler, event, trip)

    return break_next


async def well(manager: ModelManager) -> None:
    """Returns when it serves again."""
    async with asyncio.timeout(PATIENCE_S):
        while manager.trouble() is not None:  # noqa: ASYNC110 - health has no event to wait for
            await asyncio.sleep(0)


async def told(waiting: Awaitable[object]) -> str:
    with pytest.raises(InternalFault) as caught:
        await waiting
    assert caught.value.status == 500
    return caught.value.message


async def test_all_who_wait_are_told_and_it_serves_again_from_an_empty_device(
    manager: ModelManager, factory: FakeFactory, breaks: Breaks, caplog: pytest.LogCaptureFixture
) -> None:
    await use(manager, "b")
    factory.may_start.clear()
    waiting = [asyncio.create_task(use(manager, "a")) for _ in range(3)]
    unload = asyncio.create_task(manager.unload(A))
    await until(manager, "org/a", State.LOADING)
    breaks("on_loaded")
    with caplog.at_level(logging.CRITICAL):
        factory.may_start.set()
        for task in waiting:
            assert "a bug" in await told(task)
    assert "Traceback" in caplog.text  # whole, or nobody could mend it
    await asyncio.wait_for(unload, PATIENCE_S)
    assert "ZeroDivisionError" in (manager.trouble() or "")
    await told(use(manager, "b"))
    await well(manager)
    assert factory.alive() == []
    assert manager.memory().charged_bytes == 0
    assert await use(manager, "a") == "org/a"


async def test_a_running_answer_may_finish_first_and_its_end_means_nothing_to_the_new_scheduler(
    manager: ModelManager, factory: FakeFactory, breaks: Breaks
) -> None:
    async with manager.lease(A):
        breaks("on_tick")
        manager.set_policy(Policy())
        await asyncio.sleep(0)
        assert factory.alive() == ["org/a"]
    await well(manager)
    assert factory.alive() == []
    assert manager.status("org/a").running == 0
    assert await use(manager, "a") == "org/a"


async def test_an_answer_that_takes_too_long_is_cut_off(
    manager: ModelManager, factory: FakeFactory, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with manager.lease(A):
        breaks("on_tick")  # undoes every patch when it trips
        manager.set_policy(Policy())
        monkeypatch.setattr(manager_module, "RECOVERY_DRAIN_S", 0.0)
        await well(manager)
        assert factory.alive() == []
    assert await use(manager, "a") == "org/a"


@pytest.mark.parametrize("event", ["on_request", "on_release", "on_cancel", "on_exited", "forget", "next_deadline_s"])
async def test_whichever_event_it_is_nobody_hangs(
    manager: ModelManager, factory: FakeFactory, breaks: Breaks, event: str
) -> None:
    await use(manager, "a")
    factory.may_start.clear()
    waiting = asyncio.create_task(use(manager, "b"))
    leaving = asyncio.create_task(use(manager, "b"))
    await until(manager, "org/b", State.LOADING)
    breaks(event)
    match event:
        case "on_request" | "next_deadline_s":
            await told(use(manager, "c"))
        case "on_release":
            await use(manager, "a")
        case "on_cancel":
            leaving.cancel()
        case "on_exited":
            factory.engines[0].crash()
        case "forget":
            manager.catalog.replace([spec for spec in manager.catalog.specs() if spec.id != "org/c"])
    await told(waiting)
    await asyncio.wait([leaving])
    factory.may_start.set()
    await well(manager)
    assert await use(manager, "b") == "org/b"


async def test_those_who_follow_are_told_that_every_model_is_off_the_device(
    manager: ModelManager, breaks: Breaks
) -> None:
    await use(manager, "a")
    async with manager.events.subscribe() as subscription, asyncio.timeout(PATIENCE_S):
        breaks("on_tick")
        manager.set_policy(Policy())
        event = await anext(subscription)
    told = [event.data[key] for key in ("model", "before", "after", "trigger")]
    assert told == ["org/a", State.READY, State.COLD, Trigger.GONE]
    assert "a bug" in event.data["reason"]


async def test_closing_while_it_begins_anew_ends_everything(
    factory: FakeFactory, tmp_path: Path, breaks: Breaks
) -> None:
    async with managing(factory, tmp_path, Policy()) as manager:
        await use(manager, "a")
        factory.may_stop.clear()
        breaks("on_tick")
        manager.set_policy(Policy())
        await asyncio.sleep(0)
        closing = asyncio.create_task(manager.close(0))
        await asyncio.sleep(0)
        factory.may_stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await closing
        assert factory.alive() == []


async def test_what_was_preloaded_is_loaded_again(factory: FakeFactory, tmp_path: Path, breaks: Breaks) -> None:
    async with managing(factory, tmp_path, Policy(), preload=("a",)) as manager:
        await until(manager, "org/a", State.READY)
        breaks("on_tick")
        manager.set_policy(Policy())
        await well(manager)
        await until(manager, "org/a", State.READY)
        assert len(factory.engines) == 2


async def test_an_engine_whose_load_failed_unexpectedly_is_ended_too(
    manager: ModelManager, factory: FakeFactory, breaks: Breaks
) -> None:
    factory.start_error = ZeroDivisionError("a bug of the factory")
    factory.may_stop.clear()
    waiting = asyncio.create_task(use(manager, "a"))
    async with asyncio.timeout(PATIENCE_S):
        while not (factory.engines and factory.engines[0].grace_s is not None):  # noqa: ASYNC110 - nothing to wait for
            await asyncio.sleep(0)
    assert factory.alive() == ["org/a"]  # it is being ended, and that takes its time
    breaks("on_tick")
    manager.set_policy(Policy())
    await told(waiting)
    factory.may_stop.set()
    await well(manager)
    assert factory.alive() == []
