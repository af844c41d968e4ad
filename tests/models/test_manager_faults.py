"""The manager when something goes wrong, or changes, at the worst moment."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from engines.base import EngineStartError, Verdict
from models.catalog import Catalog
from models.errors import Busy, EngineGone, LoadFailed, ModelUnusable, ShuttingDown, UnknownModel
from models.manager import ModelManager
from models.runner import MAX_CAUSE_CHARS, MAX_TAIL_CHARS, _cause
from models.scheduling.policy import Policy
from models.types import ModelOverrides, ModelSpec, State
from tests.models.fake_engines import FakeEngine, FakeFactory
from tests.models.managing import PATIENCE_S, PIRATE, A, B, C, managing, until, use
from tests.models.specs import MIB, spec


class FragileFactory(FakeFactory):
    """Trips over models with strange architectures, as a third party's code may."""

    def accepts(self, spec: ModelSpec) -> Verdict:
        if spec.architecture == "Bomb":
            raise ZeroDivisionError("heads")
        return super().accepts(spec)

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        if spec.architecture == "Measureless":
            raise OverflowError("too many layers")
        return super().estimate_bytes(spec, adapters)


@pytest.fixture
def factory() -> FakeFactory:
    return FragileFactory()


@pytest.fixture
async def manager(factory: FakeFactory, tmp_path: Path) -> AsyncIterator[ModelManager]:
    async with managing(factory, tmp_path, Policy()) as made:
        yield made


@pytest.mark.parametrize(("architecture", "cause"), [("Bomb", "heads"), ("Measureless", "too many layers")])
async def test_a_model_that_its_engine_trips_over_is_refused_and_the_others_are_served(
    manager: ModelManager, architecture: str, cause: str
) -> None:
    manager.catalog.replace([spec("a-bad", architecture=architecture), A])
    assert await use(manager, "a") == "org/a"
    with pytest.raises(ModelUnusable, match=cause):
        await use(manager, "a-bad")


async def test_an_engine_that_its_factory_trips_over_while_it_loads_serves_all_the_same(
    manager: ModelManager, factory: FakeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        raise FileNotFoundError("config.json")

    factory.may_start.clear()
    waiting = asyncio.create_task(use(manager, "a"))
    await until(manager, "org/a", State.LOADING)
    monkeypatch.setattr(factory, "estimate_bytes", trip)
    factory.may_start.set()
    assert await waiting == "org/a"


async def test_a_model_that_nobody_waited_for_to_the_end_is_unloaded_after_its_keep_alive(
    manager: ModelManager, factory: FakeFactory
) -> None:
    manager.set_policy(Policy(keep_alive_s=0.05))
    factory.may_start.clear()
    task = asyncio.create_task(use(manager, "a"))
    await until(manager, "org/a", State.LOADING)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    factory.may_start.set()
    await until(manager, "org/a", State.READY)
    async with asyncio.timeout(PATIENCE_S):
        await factory.engines[0].wait_exited()


async def test_an_unload_ends_an_answer_that_outlasts_the_drain_timeout_with_a_grace(
    manager: ModelManager, factory: FakeFactory
) -> None:
    manager.set_policy(Policy(drain_timeout_s=0.05, stop_grace_s=3))
    async with manager.lease(A), asyncio.timeout(PATIENCE_S):
        assert (await manager.unload(A)).state is State.COLD
    assert factory.engines[0].grace_s == 3


async def test_an_engine_that_answers_nobody_is_ended_without_a_grace(
    manager: ModelManager, factory: FakeFactory
) -> None:
    await use(manager, "a")
    async with asyncio.timeout(PATIENCE_S):
        await manager.unload(A)
    assert factory.engines[0].grace_s == 0


async def test_a_keep_alive_configured_for_an_idle_model_takes_effect_at_once(
    manager: ModelManager, factory: FakeFactory
) -> None:
    await use(manager, "a")
    manager.catalog.replace([dataclasses.replace(A, overrides=ModelOverrides(keep_alive_s=0.05))])
    async with asyncio.timeout(PATIENCE_S):
        await factory.engines[0].wait_exited()


async def test_time_that_passes_while_the_device_is_busy_costs_no_ticks(
    manager: ModelManager, factory: FakeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.set_policy(Policy(keep_alive_s=0.01))
    async with manager.lease(A):
        factory.may_start.clear()
        loading = asyncio.create_task(use(manager, "b"))
        await until(manager, "org/b", State.LOADING)
    ticks = 0

    def on_tick(now: float) -> list[object]:
        nonlocal ticks
        ticks += 1
        return []

    monkeypatch.setattr(manager.scheduler, "on_tick", on_tick)
    await asyncio.wait([loading], timeout=0.1)  # ten keep-alives
    monkeypatch.undo()
    assert ticks <= 1
    factory.may_start.set()
    assert await loading == "org/b"


async def test_closing_during_a_load_does_not_wait_for_requests_that_were_refused(
    factory: FakeFactory, tmp_path: Path
) -> None:
    catalog = Catalog([A, B])
    manager = ModelManager(
        catalog=catalog, factories={"fake": factory}, policy=Policy(), budget_bytes=500 * MIB, state_dir=tmp_path
    )
    await manager.start()
    async with manager.lease(B):  # an answer that keeps `close` waiting until the load of A has ended by itself
        factory.may_start.clear()
        waiting = asyncio.create_task(use(manager, "a"))
        await until(manager, "org/a", State.LOADING)
        closing = asyncio.create_task(manager.close(10 * PATIENCE_S))
        with pytest.raises(ShuttingDown):
            await waiting
        factory.may_start.set()
        await until(manager, "org/a", State.READY)
    async with asyncio.timeout(PATIENCE_S):
        await closing
    with pytest.raises(ShuttingDown):
        await manager.unload(A)
    assert factory.alive() == []


async def test_an_adapter_whose_folder_changed_is_loaded_anew_with_its_base(
    manager: ModelManager, factory: FakeFactory
) -> None:
    manager.catalog.replace([A, PIRATE])
    await use(manager, "pirate")
    manager.catalog.replace([A, dataclasses.replace(PIRATE, fingerprint="2")])
    assert await use(manager, "a") == "org/a"
    assert len(factory.engines) == 1  # the base alone needs no reload
    assert await use(manager, "pirate") == "org/pirate"
    assert len(factory.engines) == 2


async def test_a_removed_adapter_is_unknown_while_its_base_serves_on(
    manager: ModelManager, factory: FakeFactory
) -> None:
    manager.catalog.replace([A, PIRATE])
    await use(manager, "pirate")
    manager.catalog.replace([A])
    with pytest.raises(UnknownModel):
        await use(manager, "pirate")
    with pytest.raises(UnknownModel, match="removed"):  # found by a request just before it went
        async with manager.lease(PIRATE):
            pass
    assert await use(manager, "a") == "org/a"
    assert len(factory.engines) == 1


async def test_an_adapter_that_no_engine_takes_does_not_keep_its_base_from_starting(
    manager: ModelManager, factory: FakeFactory
) -> None:
    odd = dataclasses.replace(PIRATE, id="org/odd", architecture="Odd")
    manager.catalog.replace([A, PIRATE, odd])
    with pytest.raises(ModelUnusable, match="architecture Odd is not known"):
        await use(manager, "odd")
    await use(manager, "a")
    assert factory.engines[0].adapters == ["org/pirate"]


async def test_a_model_removed_while_its_engine_is_replaced_is_unknown_to_who_waits(
    manager: ModelManager, factory: FakeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory.may_start.clear()
    waiting = asyncio.create_task(use(manager, "a"))
    await until(manager, "org/a", State.LOADING)
    factory.may_start.set()
    await until(manager, "org/a", State.READY)  # granted, but the task has not run yet
    monkeypatch.setattr(manager._runner, "get", lambda _: None)  # as if the engine had died and were cleared away
    manager.catalog.replace([B])
    with pytest.raises(UnknownModel, match="removed"):
        await waiting
    monkeypatch.undo()
    async with asyncio.timeout(PATIENCE_S):
        await factory.engines[0].wait_exited()


async def test_models_that_go_together_make_way_for_none_of_each_other(
    manager: ModelManager, factory: FakeFactory
) -> None:
    large, small = spec("org/large", weights_bytes=200 * MIB), spec("org/small", weights_bytes=60 * MIB)
    manager.catalog.replace([C, large, small])
    async with manager.lease(C):
        waiting = [asyncio.create_task(use(manager, name)) for name in ("large", "small")]
        await asyncio.sleep(0)
        assert [status.queued for status in manager.statuses()] == [0, 1, 1]
        manager.catalog.replace([C])
        for refused in waiting:
            with pytest.raises(UnknownModel, match="removed"):
                await refused
    assert (manager.trouble(), factory.alive()) == (None, ["org/c"])


async def test_a_model_of_which_its_factory_cannot_tell_all_that_is_needed_harms_no_other(
    manager: ModelManager, factory: FakeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = spec("org/new")
    asked = 0

    def estimate_bytes(spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        nonlocal asked
        asked += spec.id == new.id
        if asked == 2 and spec.id == new.id:  # first it is judged; then its folder is away for a moment
            raise FileNotFoundError("config.json")
        return 100 * MIB

    monkeypatch.setattr(factory, "estimate_bytes", estimate_bytes)
    manager.catalog.replace([A, new])
    assert manager.trouble() is None
    with pytest.raises(ModelUnusable, match="cannot be told"):
        await use(manager, "new")
    assert [status.id for status in manager.statuses()] == ["org/a"]
    assert await use(manager, "a") == "org/a"
    monkeypatch.undo()
    manager.catalog.replace([A, new])
    assert await use(manager, "new") == "org/new"


async def test_an_adapter_is_judged_when_it_is_found_and_not_again_for_each_request(
    manager: ModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.catalog.replace([A, PIRATE])
    await use(manager, "pirate")
    judged: list[ModelSpec] = []
    monkeypatch.setattr(manager.servable, "refusal", judged.append)
    manager.check(PIRATE)
    assert await use(manager, "pirate") == "org/pirate"
    assert judged == []


async def test_a_model_that_comes_back_changed_while_it_loads_is_served_from_its_new_content(
    manager: ModelManager, factory: FakeFactory
) -> None:
    factory.may_start.clear()
    await manager.load(A, wait=False)
    manager.catalog.replace([B])
    manager.catalog.replace([dataclasses.replace(A, fingerprint="2"), B])
    waiting = asyncio.create_task(use(manager, "a"))
    await asyncio.sleep(0)
    factory.may_start.set()
    assert await waiting == "org/a"
    assert [engine.spec.fingerprint for engine in factory.engines] == ["1", "2"]


async def test_new_aliases_reload_nothing(manager: ModelManager, factory: FakeFactory) -> None:
    await use(manager, "a")
    manager.catalog.replace([dataclasses.replace(A, aliases=("gpt-4o",)), B])
    assert await use(manager, "gpt-4o") == "org/a"
    assert len(factory.engines) == 1


async def test_memory_of_a_start_that_failed_in_an_unknown_way_is_free_only_once_it_is_gone(
    manager: ModelManager, factory: FakeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(engine: FakeEngine, timeout_s: float) -> None:
        engine.alive = True
        raise RuntimeError("processes outlived SIGKILL")

    monkeypatch.setattr(FakeEngine, "start", start)
    factory.may_stop.clear()
    waiting = asyncio.create_task(use(manager, "a"))
    await until(manager, "org/a", State.LOADING)
    await asyncio.sleep(0)
    assert manager.memory().charged_bytes == 100 * MIB
    factory.may_stop.set()
    with pytest.raises(LoadFailed, match="outlived"):
        await waiting
    assert manager.memory().charged_bytes == 0
    assert factory.alive() == []


async def fail_to_answer(manager: ModelManager, factory: FakeFactory, then: State = State.COLD) -> None:
    """A request for A whose engine ends under it; returns once that has been noticed and cleared away."""
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(EngineGone):
            async with manager.lease(A):
                factory.engines[-1].crash()
                raise EngineGone("the connection broke")
    await until(manager, "org/a", then)


async def test_an_engine_that_ends_under_its_request_is_started_again_at_once(
    manager: ModelManager, factory: FakeFactory
) -> None:
    await fail_to_answer(manager, factory)
    assert await use(manager, "a") == "org/a"
    assert len(factory.engines) == 2


async def test_an_engine_that_ends_again_and_again_is_not_started_for_ever_and_the_cause_is_told(
    manager: ModelManager, factory: FakeFactory
) -> None:
    await fail_to_answer(manager, factory)
    await fail_to_answer(manager, factory, then=State.FAILED)
    with pytest.raises(LoadFailed, match=r"2 times in a row without having answered.* it ended") as caught:
        await use(manager, "a")
    assert caught.value.retry_after_s
    assert len(factory.engines) == 2
    assert manager.memory().charged_bytes == 0


async def test_an_engine_that_answers_now_and_then_is_started_each_time(
    manager: ModelManager, factory: FakeFactory
) -> None:
    for _ in range(4):
        await fail_to_answer(manager, factory)
        assert await use(manager, "a") == "org/a"
    assert manager.status("org/a").answered_s_ago is not None


async def test_an_engine_that_hangs_is_ended_and_started_again_for_those_who_wait(
    manager: ModelManager, factory: FakeFactory
) -> None:
    async with manager.lease(A):
        (resident,) = manager.residents()
        assert (resident[0], resident[1], resident[2]) == ("org/a", factory.engines[0], 1)
        waiting = asyncio.create_task(use(manager, "a"))
        manager.hung("org/a", "its engine did nothing for 15 s")
        async with asyncio.timeout(PATIENCE_S):
            await factory.engines[0].wait_exited()
        assert await waiting == "org/a"
        assert [engine.grace_s for engine in factory.engines] == [0, None]


async def test_a_request_that_broke_off_does_not_count_as_answered(manager: ModelManager, factory: FakeFactory) -> None:
    with pytest.raises(ConnectionResetError):
        async with manager.lease(A):
            raise ConnectionResetError
    assert manager.status("org/a").answered_s_ago is None
    await use(manager, "a")
    assert manager.status("org/a").answered_s_ago is not None


async def test_a_resident_model_can_be_loaded_explicitly_however_many_wait_for_others(
    manager: ModelManager, factory: FakeFactory
) -> None:
    manager.set_policy(Policy(max_queued=1))
    await use(manager, "a")
    factory.may_start.clear()
    waiting = asyncio.create_task(use(manager, "b"))
    await until(manager, "org/b", State.LOADING)
    with pytest.raises(Busy):
        await use(manager, "c")
    assert (await manager.load(A)).state is State.READY
    factory.may_start.set()
    await waiting


def test_what_a_client_is_told_of_a_failure_is_bounded_and_ends_with_the_log_s_end() -> None:
    told = _cause(EngineStartError("it failed " * 1000, "a line\n" * 10_000 + "the last line\n"))
    assert len(told) < MAX_CAUSE_CHARS + MAX_TAIL_CHARS + 100
    assert "… a line" in told
    assert told.endswith("the last line")
