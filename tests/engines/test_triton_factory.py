"""Which models servers of KServe V2 have: the factory, asking servers on loopback ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from engines.base import Declaration, EngineContext, EngineUnavailable, Outcome
from engines.triton.triton_factory import TritonFactory
from models.types import ModelSpec, Signature, Task, Tensor
from tests.app.elsewhere import elsewhere, http
from tests.app.kserve_server import KServeServer, kserve_server

PATIENCE_S = 30
ASK_S = 0.02
NOWHERE = "grpc://127.0.0.1:1"
PAIRS = Signature((Tensor("x", "FP32", (-1, 2)),), (Tensor("sum", "FP32", (-1,)),), ("7",), "python")


class Told:
    """What a factory tells of its models."""

    def __init__(self) -> None:
        self.specs: dict[str, ModelSpec] = {}
        self.changed = asyncio.Event()

    def __call__(self, specs: Sequence[ModelSpec]) -> None:
        self.specs = {spec.id: spec for spec in specs}
        self.changed.set()

    async def until(self, *ids: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while set(self.specs) != set(ids):
                self.changed.clear()
                await self.changed.wait()


class Asking:
    """Factories on one state folder, all closed at the end."""

    def __init__(self, state: Path, stack: AsyncExitStack) -> None:
        self._state = state
        self.stack = stack

    async def server(self, **options: Any) -> KServeServer:
        return await self.stack.enter_async_context(kserve_server(**options))

    async def factory(self, *urls: str, **declared: Any) -> tuple[TritonFactory, Told]:
        declaration = Declaration(kind="triton", urls=urls, **declared)
        folder = self._state
        context = EngineContext(folder, folder, folder, "cpu", name="box", declared=declaration)
        factory, told = TritonFactory(context, ask_s=ASK_S, ask_down_s=ASK_S), Told()
        self.stack.push_async_callback(factory.close)
        factory.follow(told)
        await factory.start()
        return factory, told


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    async with AsyncExitStack() as stack:
        yield Asking(tmp_path, stack)


def error_of(factory: TritonFactory) -> str:
    return str(factory.state()["servers"][0]["error"])


async def until_told(factory: TritonFactory, text: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while text not in error_of(factory):  # noqa: ASYNC110  # another task's progress
            await asyncio.sleep(ASK_S)


async def test_models_are_known_with_what_they_take_before_the_start_is_over(asking: Asking) -> None:
    server = await asking.server(models=("adder", "team/other"))
    factory, told = await asking.factory(server.url, prefix="box/")
    assert set(told.specs) == {"box/adder", "box/team/other"}
    spec = told.specs["box/adder"]
    assert (spec.task, spec.engine, spec.signature) == (Task.TENSOR, "box", PAIRS)
    assert factory.accepts(spec).ok
    endpoint = factory.create(spec).endpoint
    assert (endpoint.base_url, endpoint.model, endpoint.ends_with_us) == (server.url, "adder", False)


async def test_models_come_and_go_and_change_while_it_runs(asking: Asking) -> None:
    server = await asking.server()
    _, told = await asking.factory(server.url)
    server.models = ("adder", "new")
    await told.until("adder", "new")
    server.models = ("new",)
    await told.until("new")
    server.takes = (("x", "FP32", (-1, 3)),)
    async with asyncio.timeout(PATIENCE_S):
        while (signature := told.specs["new"].signature) is None or signature.inputs[0].shape != (-1, 3):
            told.changed.clear()
            await told.changed.wait()


async def test_a_server_that_is_down_at_the_start_is_down_and_not_without_models(asking: Asking) -> None:
    server = await asking.server()
    first, _ = await asking.factory(server.url)
    await first.close()
    await server.stop()
    factory, told = await asking.factory(server.url)
    assert told.specs["adder"].signature == PAIRS
    await until_told(factory, "no connection to 127.0.0.1")
    assert factory.create(told.specs["adder"]).endpoint.base_url == server.url
    await server.start()
    await told.until("adder")


async def test_named_models_are_there_without_asking_and_are_asked_for_where_they_are(asking: Asking) -> None:
    one = await asking.server(models=("a",), index_status=grpc.StatusCode.UNIMPLEMENTED)
    other = await asking.server(models=("b",), index_status=grpc.StatusCode.UNIMPLEMENTED)
    factory, told = await asking.factory(one.url, other.url, models={"first": "a", "second": "b"})
    assert set(told.specs) == {"first", "second"}
    assert [factory.create(told.specs[name]).endpoint.base_url for name in ("first", "second")] == [one.url, other.url]
    assert [spec.signature for spec in told.specs.values()] == [PAIRS, PAIRS]
    _, elsewhere_told = await asking.factory(NOWHERE, models={"third": "c"})
    assert elsewhere_told.specs["third"].signature is None


async def test_what_keeps_a_server_from_telling_is_said_in_health(asking: Asking) -> None:
    server = await asking.server(index_status=grpc.StatusCode.UNIMPLEMENTED)
    factory, _ = await asking.factory(server.url)
    await until_told(factory, "cannot list its models; name them under `models:`")
    garbage = {
        b"<html>": "no list of models",
        b"[3]": "no list of models",
        b'[{"name": "m", "state": "READY"}]': "describes no model",
        b"x" * (17 << 20): "longer than 16 MiB",
    }
    for answer, told in garbage.items():
        wrong = await asking.stack.enter_async_context(elsewhere(answer=http(answer)))
        factory, seen = await asking.factory(wrong.url)
        await until_told(factory, told)
        assert seen.specs == {}


async def test_a_circuit_that_is_open_says_which_server_why_and_until_when(asking: Asking) -> None:
    server = await asking.server()
    factory, told = await asking.factory(server.url, breaker_failures=1, breaker_open_s=30.0)
    engine = factory.create(told.specs["adder"])
    watcher = engine.endpoint.watcher
    assert watcher is not None
    watcher.begin()
    watcher.end(Outcome.FAILED, "it fell over")
    with pytest.raises(EngineUnavailable, match=r"'box'.*127.0.0.1.*it fell over.*tried again in 30 s") as refused:
        _ = engine.endpoint
    assert refused.value.retry_after_s == pytest.approx(30.0, abs=PATIENCE_S)
    assert not await engine.health()


async def test_a_key_that_is_not_there_is_named(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOX_KEY", raising=False)
    server = await asking.server()
    factory, told = await asking.factory(server.url, models={"adder": "adder"}, api_key_env="BOX_KEY")
    with pytest.raises(EngineUnavailable, match="BOX_KEY"):
        _ = factory.create(told.specs["adder"]).endpoint
    assert "BOX_KEY" in str(factory.state()["error"])


async def test_models_are_asked_for_again_after_they_could_not_be_taken_in(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await asking.server()
    tell = Told.__call__

    def refuse(told: Told, specs: Sequence[ModelSpec]) -> None:
        monkeypatch.setattr(Told, "__call__", tell)
        raise RuntimeError("these cannot be taken in")

    monkeypatch.setattr(Told, "__call__", refuse)
    _, told = await asking.factory(there.url)
    there.models = ("adder", "other")
    await told.until("adder", "other")


async def test_lengths_that_no_tensor_has_describe_no_model(asking: Asking) -> None:
    for length in (b"1e300", b"-2"):
        model = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [' + length + b"]}]}"
        there = await asking.stack.enter_async_context(elsewhere(answer=http(model)))
        factory, _ = await asking.factory(there.url, models={"adder": "adder"})
        await until_told(factory, "describes no model")
