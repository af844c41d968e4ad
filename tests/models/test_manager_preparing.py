"""The manager with engines that need something made before they can be loaded: nobody else waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engines.base import EngineUnavailable
from models.catalog import Catalog
from models.errors import Busy, ShuttingDown, Unavailable, UnknownModel
from models.manager import ModelManager
from models.scheduling.policy import Policy
from models.types import ModelSpec, State
from tests.models.fake_engines import FakeFactory
from tests.models.managing import PATIENCE_S, A, B, until, use
from tests.models.specs import MIB, spec

OWN = spec("org/own", engine="own")


class PreparingFactory(FakeFactory):
    name = "own"

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.may_prepare = asyncio.Event()
        self.made = False
        self.refusal: EngineUnavailable | None = None

    def prepared(self, spec: ModelSpec) -> bool:
        return self.made

    async def prepare(self, spec: ModelSpec) -> None:
        self.asked.set()
        await self.may_prepare.wait()
        if self.refusal is not None:
            raise self.refusal
        self.made = True

    def preparing(self, spec: ModelSpec) -> str:
        return "installing what it needs"


@pytest.fixture
def own() -> PreparingFactory:
    return PreparingFactory()


@pytest.fixture
async def manager(own: PreparingFactory, tmp_path: Path) -> AsyncIterator[ModelManager]:
    """Room for one model."""
    fake = FakeFactory()
    manager = ModelManager(
        catalog=Catalog([A, B, OWN]),
        factories={"fake": fake, "own": own},
        policy=Policy(),
        budget_bytes=130 * MIB,
        state_dir=tmp_path,
    )
    await manager.start()
    yield manager
    async with asyncio.timeout(PATIENCE_S):
        await manager.close(0)
    assert [*fake.alive(), *own.alive()] == []


async def test_the_first_request_has_it_made_while_others_are_loaded_and_served(
    manager: ModelManager, own: PreparingFactory
) -> None:
    first, second = (asyncio.create_task(use(manager, "org/own")) for _ in range(2))
    await own.asked.wait()
    assert manager.preparing(OWN) == "installing what it needs"
    assert [await use(manager, "org/a"), await use(manager, "org/b")] == ["org/a", "org/b"]
    assert manager.status("org/b").state is State.READY  # nobody was evicted for what cannot be loaded yet
    own.may_prepare.set()
    assert await asyncio.gather(first, second) == ["org/own", "org/own"]
    assert (manager.preparing(OWN), len(own.engines)) == (None, 1)


async def test_whoever_leaves_meanwhile_is_missed_by_nobody(manager: ModelManager, own: PreparingFactory) -> None:
    leaver = asyncio.create_task(use(manager, "org/own"))
    await own.asked.wait()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    own.may_prepare.set()
    assert await use(manager, "org/own") == "org/own"


async def test_a_failure_is_told_with_the_time_to_try_again_and_evicts_nobody(
    manager: ModelManager, own: PreparingFactory
) -> None:
    await use(manager, "org/a")
    own.may_prepare.set()
    own.refusal = EngineUnavailable("no such version", retry_after_s=7)
    with pytest.raises(Unavailable, match="no such version") as caught:
        await use(manager, "org/own")
    assert caught.value.retry_after_s == 7
    assert manager.status("org/a").state is State.READY


async def test_a_load_that_nobody_waits_for_comes_once_it_can(manager: ModelManager, own: PreparingFactory) -> None:
    status = await manager.load(OWN, wait=False)
    assert status.state is State.COLD
    await own.asked.wait()
    own.may_prepare.set()
    await until(manager, "org/own", State.READY)


async def test_a_model_that_goes_meanwhile_is_told_as_removed_and_others_are_served(
    manager: ModelManager, own: PreparingFactory
) -> None:
    loading = asyncio.create_task(manager.load(OWN))
    await own.asked.wait()
    manager.catalog.replace([A, B])
    own.may_prepare.set()
    with pytest.raises(UnknownModel, match="was removed"):
        await loading
    assert (manager.trouble(), await use(manager, "org/a")) == (None, "org/a")


async def test_those_beyond_the_bound_are_refused_at_once(manager: ModelManager, own: PreparingFactory) -> None:
    manager.set_policy(Policy(max_queued=2))
    waiting = [asyncio.create_task(use(manager, "org/own")) for _ in range(2)]
    await own.asked.wait()
    with pytest.raises(Busy, match="max_queued") as caught:
        await use(manager, "org/own")
    assert caught.value.retry_after_s
    own.may_prepare.set()
    assert await asyncio.gather(*waiting) == ["org/own", "org/own"]


async def test_the_end_waits_for_none_of_it(manager: ModelManager, own: PreparingFactory) -> None:
    waiting = asyncio.create_task(use(manager, "org/own"))
    await own.asked.wait()
    await manager.close(PATIENCE_S)
    with pytest.raises(ShuttingDown):
        await waiting
