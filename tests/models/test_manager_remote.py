"""The manager with models that are served elsewhere: always there, at no cost, and never anybody's victim."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import Endpoint, EngineUnavailable, Outcome
from models.catalog import Catalog
from models.errors import ModelUnusable, Unavailable, UnknownModel
from models.manager import ModelManager
from models.scheduling.policy import Policy
from models.types import ModelSpec, State
from tests.models.fake_engines import FakeEngine, FakeFactory
from tests.models.managing import PATIENCE_S, A, B, until, use
from tests.models.specs import MIB, spec

FAR = spec("far/model", engine="box", weights_bytes=0)
MOVED = replace(A, engine="box", fingerprint="box:a")  # what was in the folder is served elsewhere now


class Watcher:
    """Notes what it is told of one request."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self) -> None:
        self.told.append("begin")

    def answers(self) -> None:
        self.told.append("answers")

    def end(self, outcome: Outcome, why: str = "") -> None:
        self.told.append(f"{outcome} {why}".strip())


class RemoteEngine(FakeEngine):
    @property
    def endpoint(self) -> Endpoint:
        assert isinstance(self._factory, RemoteFactory)
        if self._factory.unavailable is not None:
            raise self._factory.unavailable
        return Endpoint(base_url="http://box", model="theirs", ends_with_us=False, watcher=self._factory.watcher)


class RemoteFactory(FakeFactory):
    name, remote = "box", True

    def __init__(self) -> None:
        super().__init__()
        self.watcher = Watcher()
        self.unavailable: EngineUnavailable | None = None

    def create(self, spec: ModelSpec, adapters: object = ()) -> FakeEngine:
        self.engines.append(RemoteEngine(self, spec, ()))
        return self.engines[-1]


@pytest.fixture
def here() -> FakeFactory:
    return FakeFactory()


@pytest.fixture
def box() -> RemoteFactory:
    return RemoteFactory()


@pytest.fixture
async def manager(here: FakeFactory, box: RemoteFactory, tmp_path: Path) -> AsyncIterator[ModelManager]:
    """A, B and FAR, with room for A and B."""
    manager = ModelManager(
        catalog=Catalog([A, B, FAR]),
        factories={"fake": here, "box": box},
        policy=Policy(),
        budget_bytes=250 * MIB,
        state_dir=tmp_path,
    )
    await manager.start()
    yield manager
    async with asyncio.timeout(PATIENCE_S):
        await manager.close(0)
    assert here.alive() == []


async def test_it_is_ready_from_the_start_and_was_never_started(manager: ModelManager, box: RemoteFactory) -> None:
    status = manager.status(FAR.id)
    assert (status.state, status.loads, status.estimated_bytes) == (State.READY, 0, 0)
    assert await use(manager, FAR.id) == "theirs"
    assert box.alive() == []


async def test_it_takes_no_memory_and_nobody_leaves_for_it(manager: ModelManager, here: FakeFactory) -> None:
    await use(manager, A.id)
    await use(manager, B.id)
    charged_bytes = manager.memory().charged_bytes
    await use(manager, FAR.id)
    assert sorted(here.alive()) == [A.id, B.id]
    assert manager.memory().charged_bytes == charged_bytes


async def test_a_load_of_it_has_nothing_to_do_and_an_unload_is_refused(manager: ModelManager) -> None:
    async with asyncio.timeout(PATIENCE_S / 10):
        assert (await manager.load(FAR)).state is State.READY
    with pytest.raises(ModelUnusable, match="served elsewhere, by box: there is nothing to unload here"):
        await manager.unload(FAR)
    assert manager.forecast(FAR).outcome == "granted"


async def test_whoever_watches_is_told_how_each_request_ended(manager: ModelManager, box: RemoteFactory) -> None:
    async with manager.lease(FAR) as lease:
        lease.answers()
    async with manager.lease(FAR) as lease:
        lease.fails("it broke off")
    with pytest.raises(asyncio.CancelledError):
        async with manager.lease(FAR):
            raise asyncio.CancelledError
    assert box.watcher.told == ["begin", "answers", "answered", "begin", "failed it broke off", "begin", "abandoned"]


async def test_when_no_server_takes_requests_that_is_said_at_once_and_nothing_is_kept(
    manager: ModelManager, box: RemoteFactory
) -> None:
    box.unavailable = EngineUnavailable("gpu1 failed 5 times", retry_after_s=23)
    with pytest.raises(Unavailable, match="gpu1 failed 5 times") as caught:
        await use(manager, FAR.id)
    assert (caught.value.retry_after_s, manager.status(FAR.id).running, box.watcher.told) == (23, 0, [])
    box.unavailable = None
    assert await use(manager, FAR.id) == "theirs"


async def test_one_that_goes_finishes_its_answers_and_takes_no_more(manager: ModelManager, box: RemoteFactory) -> None:
    async with manager.lease(FAR) as lease:
        manager.catalog.replace([A, B])
        with pytest.raises(UnknownModel):
            await use(manager, FAR.id)
        lease.answers()
    assert box.watcher.told[-1] == "answered"
    with pytest.raises(UnknownModel):
        manager.status(FAR.id)
    manager.catalog.replace([A, B, FAR])
    assert await use(manager, FAR.id) == "theirs"


async def test_a_model_that_moves_elsewhere_ends_here_first_and_the_other_way_round(
    manager: ModelManager, here: FakeFactory
) -> None:
    async with manager.lease(A):
        manager.catalog.replace([MOVED, B])
        assert here.alive() == [A.id]  # its running answer goes on
        with pytest.raises(Unavailable, match="has changed its engine"):
            await use(manager, A.id)
    await until_known(manager, A.id)
    assert here.alive() == []
    assert await use(manager, A.id) == "theirs"
    manager.catalog.replace([A, B])
    await until_known(manager, A.id)
    assert await use(manager, A.id) == A.id
    await until(manager, A.id, State.READY)
    assert here.alive() == [A.id]


async def test_what_comes_elsewhere_while_its_namesake_is_leaving_waits_for_that_and_the_other_way_round(
    manager: ModelManager, here: FakeFactory
) -> None:
    local_far = replace(A, id=FAR.id)
    async with manager.lease(A), manager.lease(FAR):
        manager.catalog.replace([B])
        manager.catalog.replace([MOVED, local_far, B])
        assert here.alive() == [A.id]
    await until_known(manager, A.id)
    await until_known(manager, FAR.id)
    assert here.alive() == []  # nobody's engine was forgotten
    assert (await use(manager, A.id), await use(manager, FAR.id)) == ("theirs", FAR.id)


async def until_known(manager: ModelManager, model: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while model not in {status.id for status in manager.statuses()}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_engines_start_at_once_so_that_one_whose_servers_are_silent_delays_no_other(tmp_path: Path) -> None:
    met = asyncio.Barrier(2)

    class Meeting(RemoteFactory):
        async def start(self) -> None:
            await met.wait()

    factories = {"box": Meeting(), "bax": Meeting()}
    manager = ModelManager(
        catalog=Catalog(), factories=factories, policy=Policy(), budget_bytes=MIB, state_dir=tmp_path
    )
    await asyncio.wait_for(manager.start(), PATIENCE_S)
    await manager.close(0.0)
