"""A manager on fake engines, and what its tests do with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from models.catalog import Catalog
from models.manager import ModelManager
from models.scheduling.policy import Policy
from models.types import State, Task
from tests.models.fake_engines import FakeFactory
from tests.models.specs import MIB, spec

PATIENCE_S = 10
A, B, C = spec("org/a"), spec("org/b"), spec("org/c")
PIRATE = spec("org/pirate", task=Task.ADAPTER, parent="org/a")


@asynccontextmanager
async def managing(
    factory: FakeFactory, state_dir: Path, policy: Policy, budget_bytes: int = 250 * MIB, preload: tuple[str, ...] = ()
) -> AsyncIterator[ModelManager]:
    """A, B and C, whose estimates are 100 MiB and which measure 120; room for two. Proves that no engine is left."""
    manager = ModelManager(
        catalog=Catalog([A, B, C]),
        factories={"fake": factory},
        policy=policy,
        budget_bytes=budget_bytes,
        state_dir=state_dir,
        preload=preload,
    )
    await manager.start()
    yield manager
    factory.let_all()
    async with asyncio.timeout(PATIENCE_S):
        await manager.close(0)
    assert factory.alive() == []
    assert factory.closed


async def until(manager: ModelManager, model: str, state: State) -> None:
    """Lets the loop run until `model` is in `state`; each turn of the loop is one chance."""
    async with asyncio.timeout(PATIENCE_S):
        while manager.status(model).state is not state:  # noqa: ASYNC110 - states have no event to wait for
            await asyncio.sleep(0)


async def use(manager: ModelManager, model: str) -> str:
    """One request: the name under which its engine serves it."""
    async with asyncio.timeout(PATIENCE_S), manager.lease(manager.catalog.resolve(model)) as lease:
        return lease.served_name
