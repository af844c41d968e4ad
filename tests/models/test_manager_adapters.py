"""LoRA adapters in engines that take them while they serve: put in, replaced, taken out, refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import AdapterRefused
from models.errors import ModelUnusable
from models.manager import ModelManager
from models.scheduling.policy import Policy
from models.types import ModelSpec, State, Task
from tests.models.fake_engines import MIB, FakeEngine, FakeFactory
from tests.models.managing import PATIENCE_S, PIRATE, A, B, C, managing, until, use
from tests.models.specs import spec

ENDS_AFTER_S = 0.02
PARROT = spec("org/parrot", task=Task.ADAPTER, parent="org/a")


class AdapterEngine(FakeEngine):
    """Remembers what was done with which content of an adapter."""

    def __init__(self, factory: AdapterFactory, spec: ModelSpec, adapters: Sequence[ModelSpec]) -> None:
        super().__init__(factory, spec, adapters)
        self.may_add = factory.may_add
        self.refusals = factory.refusals
        self.done: list[str] = []
        self.dying = False  # it answers no more, and ends a moment later

    async def add_adapter(self, adapter: ModelSpec) -> None:
        self.done.append(f"add {adapter.id} {adapter.fingerprint}")
        await self.may_add.wait()
        if self.dying:
            asyncio.get_running_loop().call_later(ENDS_AFTER_S, self.crash)
            raise ConnectionRefusedError
        if (refusal := self.refusals.pop(adapter.id, None)) is not None:
            raise refusal

    async def remove_adapter(self, adapter_id: str) -> None:
        self.done.append(f"remove {adapter_id}")


class AdapterFactory(FakeFactory):
    """Its engines need 10 MiB more for adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.may_add = asyncio.Event()
        self.may_add.set()
        self.refusals: dict[str, AdapterRefused] = {}  # each is raised once

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return super().estimate_bytes(spec) + (10 * MIB if adapters else 0)

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> FakeEngine:
        self.engines.append(AdapterEngine(self, spec, adapters))
        return self.engines[-1]

    @property
    def newest(self) -> AdapterEngine:
        engine = self.engines[-1]
        assert isinstance(engine, AdapterEngine)
        return engine


@pytest.fixture
def factory() -> AdapterFactory:
    return AdapterFactory()


@pytest.fixture
async def manager(factory: AdapterFactory, tmp_path: Path) -> AsyncIterator[ModelManager]:
    async with managing(factory, tmp_path, Policy()) as made:
        made.catalog.replace([A, PIRATE, PARROT])
        yield made


async def turns() -> None:
    """All that can go on without a word from the test has gone on."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_each_is_put_in_by_its_first_request_and_its_base_is_loaded_once(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    names = await asyncio.gather(*(use(manager, name) for name in ("a", "pirate", "parrot", "pirate", "pirate")))
    assert names == ["org/a", "org/pirate", "org/parrot", "org/pirate", "org/pirate"]
    assert sorted(factory.newest.done) == ["add org/parrot 1", "add org/pirate 1"]
    assert len(factory.engines) == 1
    assert manager.status("org/a").adapters == ("org/parrot", "org/pirate")


async def test_one_that_appears_or_goes_leaves_its_base_alone(manager: ModelManager, factory: AdapterFactory) -> None:
    await use(manager, "pirate")
    late = replace(PIRATE, id="org/late")
    manager.catalog.replace([A, late])
    await turns()
    assert await use(manager, "late") == "org/late"
    assert factory.newest.done == ["add org/pirate 1", "remove org/pirate", "add org/late 1"]
    assert len(factory.engines) == 1


async def test_a_replaced_one_waits_for_what_runs_with_its_old_content(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    """Two of one name in an engine of vLLM at a time may end it."""
    async with manager.lease(PIRATE):
        manager.catalog.replace([A, replace(PIRATE, fingerprint="2"), PARROT])
        waiting = asyncio.create_task(use(manager, "pirate"))
        assert await use(manager, "parrot") == "org/parrot"
        await turns()
        assert not waiting.done()
        assert factory.newest.done == ["add org/pirate 1", "add org/parrot 1"]
    assert await waiting == "org/pirate"
    assert factory.newest.done[2:] == ["add org/pirate 2"]
    assert len(factory.engines) == 1


async def test_one_that_is_unloaded_or_deleted_is_taken_out_after_what_was_granted_before(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    """An engine that lacks it by the time that such a request is sent would not know the model."""
    async with manager.lease(PIRATE), manager.lease(PARROT):
        unloading = asyncio.create_task(manager.unload(PIRATE))
        manager.catalog.replace([A, PIRATE])
        await turns()
        again = asyncio.create_task(use(manager, "pirate"))
        await turns()
        assert factory.newest.done == ["add org/pirate 1", "add org/parrot 1"]
        assert (await manager.unload(PIRATE, wait=False)).adapters == ()
    await unloading
    assert await again == "org/pirate"
    assert sorted(factory.newest.done[2:]) == ["add org/pirate 1", "remove org/parrot", "remove org/pirate"]


async def test_one_that_is_deleted_after_its_base_slept_is_taken_out_as_well(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    factory.levels = (1,)
    manager.set_policy(Policy(sleep_memory_bytes=1000 * MIB))
    manager.catalog.replace([A, B, C, PIRATE])
    for name in ("pirate", "b", "c", "a"):
        await use(manager, name)
    assert factory.engines[0].wakes == 1
    assert manager.status("org/a").adapters == ()
    manager.catalog.replace([A, B, C])
    await turns()
    assert factory.engines[0].done == ["add org/pirate 1", "remove org/pirate"]  # type: ignore[attr-defined]


async def test_a_request_whose_adapter_finds_its_base_dying_is_served_by_a_fresh_one(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    await use(manager, "a")
    factory.newest.dying = True
    assert await use(manager, "pirate") == "org/pirate"
    assert [engine.alive for engine in factory.engines] == [False, True]


async def test_unloading_one_takes_out_it_alone_until_it_is_asked_for_again(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    await use(manager, "pirate")
    await use(manager, "parrot")
    status = await manager.unload(PIRATE)
    assert (status.state, status.adapters) == (State.READY, ("org/parrot",))
    assert (await manager.load(PIRATE)).adapters == ("org/parrot", "org/pirate")
    assert factory.newest.done[2:] == ["remove org/pirate", "add org/pirate 1"]
    await manager.unload(A)
    assert (await manager.unload(PIRATE)).state is State.COLD


async def test_one_that_is_refused_fails_its_own_requests_and_is_not_tried_again_until_it_changes(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    factory.refusals["org/pirate"] = AdapterRefused("it was made for another base.")
    for _ in range(2):
        with pytest.raises(ModelUnusable, match="'org/pirate' cannot be loaded into 'org/a': it was made for another"):
            await use(manager, "pirate")
    assert factory.newest.done == ["add org/pirate 1"]
    assert await use(manager, "parrot") == "org/parrot"
    manager.catalog.replace([A, replace(PIRATE, fingerprint="2"), PARROT])
    assert await use(manager, "pirate") == "org/pirate"
    assert len(factory.engines) == 1


async def test_one_beyond_its_base_s_limits_has_it_loaded_anew_once_it_is_idle(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    factory.refusals["org/pirate"] = AdapterRefused("it has rank 64", reload=True)
    async with manager.lease(A):
        waiting = asyncio.create_task(use(manager, "pirate"))
        await until(manager, "org/a", State.DRAINING)
        assert len(factory.engines) == 1
    assert await waiting == "org/pirate"
    assert [engine.alive for engine in factory.engines] == [False, True]


async def test_what_an_engine_that_is_gone_said_of_its_limits_reloads_no_other(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    factory.may_add.clear()
    factory.refusals["org/pirate"] = AdapterRefused("it has rank 64", reload=True)
    waiting = asyncio.create_task(use(manager, "pirate"))
    async with asyncio.timeout(PATIENCE_S):
        while not (factory.engines and factory.newest.done):  # noqa: ASYNC110
            await asyncio.sleep(0)
    factory.engines[0].crash()
    await turns()
    await use(manager, "a")
    factory.may_add.set()
    assert await waiting == "org/pirate"
    assert [engine.alive for engine in factory.engines] == [False, True]


async def test_a_client_that_goes_away_while_its_adapter_is_put_in_leaves_no_trace(
    manager: ModelManager, factory: AdapterFactory
) -> None:
    factory.may_add.clear()
    waiting = asyncio.create_task(use(manager, "pirate"))
    async with asyncio.timeout(PATIENCE_S):
        while not (factory.engines and factory.newest.done):  # noqa: ASYNC110
            await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    factory.may_add.set()
    assert manager.status("org/a").running == 0
    assert await use(manager, "pirate") == "org/pirate"


async def test_the_first_adapter_of_a_model_changes_what_the_model_is_expected_to_take(manager: ModelManager) -> None:
    assert manager.status("org/a").estimated_bytes == 110 * MIB
    manager.catalog.replace([A])
    assert manager.status("org/a").estimated_bytes == 100 * MIB
