"""A model whose start would fail is found out before anything leaves the device for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engines.base import EngineStartError
from models.errors import ModelUnusable
from models.scheduling.policy import Policy
from models.types import ModelSpec, State
from tests.models.fake_engines import FakeFactory
from tests.models.managing import managing, use
from tests.models.specs import MIB


class CheckingFactory(FakeFactory):
    """Would not start org/b."""

    def __init__(self) -> None:
        super().__init__()
        self.checked: list[str] = []

    def prepared(self, spec: ModelSpec) -> bool:
        return spec.id != "org/b"

    async def prepare(self, spec: ModelSpec) -> None:
        self.checked.append(spec.id)
        raise EngineStartError("unrecognized arguments: --nonsense")

    def preparing(self, spec: ModelSpec) -> str:
        return "its arguments are looked at"


@pytest.mark.asyncio
async def test_what_would_not_start_is_refused_with_the_reason_and_evicts_nothing(tmp_path: Path) -> None:
    factory = CheckingFactory()
    async with managing(factory, tmp_path, Policy(), budget_bytes=150 * MIB) as manager:
        await use(manager, "org/a")
        for _ in range(2):
            with pytest.raises(ModelUnusable, match=r"cannot be started as it is configured: .* --nonsense"):
                await use(manager, "org/b")
        async with asyncio.timeout(10):
            with pytest.raises(ModelUnusable):
                await manager.load(manager.catalog.resolve("org/b"))
        assert manager.status("org/a").state is State.READY
        assert [engine.spec.id for engine in factory.engines] == ["org/a"]
        assert factory.checked
