"""What the models of servers elsewhere are: the factory, asking real HTTP servers on loopback ports."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from engines.base import Declaration, EngineContext, EngineUnavailable
from engines.remote.listing import Listing, parse
from engines.remote.openai_factory import OpenAIFactory
from engines.remote.remote_factory import NoList
from models.types import ModelSpec, Task
from tests.app.elsewhere import Elsewhere, elsewhere, http

PATIENCE_S = 10
ASK_S = 0.02
VARIABLE = "TEST_BOX_KEY"


class Told:
    """What a factory tells of its models."""

    def __init__(self) -> None:
        self.times = 0
        self.specs: dict[str, ModelSpec] = {}
        self._changed = asyncio.Event()

    def __call__(self, specs: Sequence[ModelSpec]) -> None:
        self.times += 1
        self.specs = {spec.id: spec for spec in specs}
        self._changed.set()

    async def until(self, *ids: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while set(self.specs) != set(ids):
                self._changed.clear()
                await self._changed.wait()


class Asking:
    """Factories on one state folder, each with servers of its own; all are closed at the end."""

    def __init__(self, state: Path, stack: AsyncExitStack) -> None:
        self._state = state
        self._stack = stack

    async def server(self, **options: Any) -> Elsewhere:
        return await self._stack.enter_async_context(elsewhere(**options))

    async def factory(self, *urls: str, **declared: Any) -> tuple[OpenAIFactory, Told]:
        declaration = Declaration(kind="openai", urls=urls, **declared)
        folder = self._state
        context = EngineContext(folder, folder, folder, "cpu", name="box", declared=declaration)
        factory, told = OpenAIFactory(context, ask_s=ASK_S, ask_down_s=ASK_S), Told()
        factory.follow(told)
        self._stack.push_async_callback(factory.close)
        await factory.start()
        return factory, told


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    async with AsyncExitStack() as stack:
        yield Asking(tmp_path, stack)


async def asked_again(server: Elsewhere) -> None:
    """Returns when `server` has answered one more question than it had, and that was heard."""
    before = server.listed
    async with asyncio.timeout(PATIENCE_S):
        while server.listed < before + 2:  # noqa: ASYNC110 - the next question says that the last answer was heard
            await asyncio.sleep(ASK_S / 2)


async def complaint(factory: OpenAIFactory) -> str:
    """Why the factory's only server could not be asked, once that is known."""
    async with asyncio.timeout(PATIENCE_S):
        while (error := factory.state()["servers"][0]["error"]) is None:  # noqa: ASYNC110 - only shown, never told
            await asyncio.sleep(ASK_S)
    return str(error)


def base_url(factory: OpenAIFactory, model: str) -> str:
    return factory.endpoint(model).base_url


async def test_what_a_server_lists_is_known_as_soon_as_the_factory_has_started(asking: Asking) -> None:
    hints = {"id": "a/cross", "task": "rerank", "max_model_len": 512, "created": 1700000000}
    server = await asking.server(models=[hints, "bge-reranker-v2-m3", "nomic-embed-text", "llama3"])
    factory, told = await asking.factory(server.api)
    tasks = {spec.id: spec.task for spec in told.specs.values()}
    assert tasks == {
        "a/cross": Task.RERANK,
        "bge-reranker-v2-m3": Task.RERANK,
        "nomic-embed-text": Task.EMBED,
        "llama3": Task.CHAT,
    }
    spec = told.specs["a/cross"]
    assert (spec.engine, spec.max_model_len, spec.created_s) == ("box", 512, 1700000000)
    assert factory.accepts(spec).ok
    assert factory.reasons(spec) == (f"engine: box: it is served elsewhere, by 127.0.0.1:{server.port}",)


async def test_what_appears_and_goes_there_appears_and_goes_here(asking: Asking) -> None:
    server = await asking.server(models=["one", "two"])
    factory, told = await asking.factory(server.api)
    gone = told.specs["one"]
    server.models = ["two", "three"]
    await told.until("two", "three")
    assert not factory.accepts(gone).ok


async def test_a_fault_in_taking_models_in_does_not_end_the_asking(asking: Asking) -> None:
    server = await asking.server(models=["a"])
    factory, told = await asking.factory(server.api)
    faults = [ValueError("a listener tripped")]
    factory.follow(lambda specs: told(specs) if not faults else _trip(faults))
    server.models = ["a", "b"]
    await asked_again(server)
    server.models = ["c"]
    await asked_again(server)
    assert told.specs.keys() == {"c"}
    assert not faults


def _trip(faults: list[ValueError]) -> None:
    raise faults.pop()


async def test_a_list_that_says_the_same_again_is_not_told_again(asking: Asking) -> None:
    server = await asking.server(models=[{"id": "one", "created": 1}])
    _, told = await asking.factory(server.api)
    server.models = [{"id": "one", "created": 2}]  # some say the time of the question
    await asked_again(server)
    assert told.times == 1


async def test_ids_get_the_prefix_and_servers_never_see_it(asking: Asking) -> None:
    server = await asking.server()
    factory, told = await asking.factory(server.api, prefix="box/")
    assert set(told.specs) == {"box/demo/chat"}
    assert factory.endpoint("box/demo/chat").model == "demo/chat"


async def test_models_that_are_named_are_known_without_a_list_and_are_the_only_ones(asking: Asking) -> None:
    server = await asking.server(models=http(b"nothing here", 404), port=0)
    factory, told = await asking.factory(server.api, models={"mine": "their/name"})
    assert set(told.specs) == {"mine"}
    assert factory.endpoint("mine").model == "their/name"


async def test_a_model_is_asked_of_the_servers_that_have_it(asking: Asking) -> None:
    first, second = await asking.server(models=["a", "both"]), await asking.server(models=["b", "both"])
    factory, told = await asking.factory(first.api, second.api)
    await told.until("a", "b", "both")
    assert [base_url(factory, "a"), base_url(factory, "b")] == [first.url, second.url]
    watcher = factory.endpoint("both").watcher
    assert watcher is not None
    watcher.begin()  # now the first has one request, and the second none
    assert base_url(factory, "both") == second.url


async def test_a_server_that_is_down_keeps_what_it_said_even_across_a_restart(asking: Asking) -> None:
    server = await asking.server()
    first, told = await asking.factory(server.api)
    await first.close()
    await server.kill()
    factory, told = await asking.factory(server.api)
    assert set(told.specs) == {"demo/chat"}
    assert "Connect" in await complaint(factory)


async def test_a_damaged_file_of_what_servers_said_is_as_none(asking: Asking, tmp_path: Path) -> None:
    server = await asking.server()
    await asking.factory(server.api)
    (kept,) = (tmp_path / "remote").glob("*.json")
    kept.write_text(json.dumps({server.api: {"demo/chat": {"task": 7}}}))
    _, told = await asking.factory(server.api)
    assert set(told.specs) == {"demo/chat"}


BROKEN_LISTS = {
    "status 404": http(b"{}", 404),
    "no JSON": http(b"<html>", kind="text/html"),
    "no list of models": http(b'{"data": 7}'),
    "status 302": http(b"", 302, headers={"location": "http://127.0.0.1:1/"}),
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}


@pytest.mark.parametrize("what", BROKEN_LISTS)
async def test_a_server_that_says_nonsense_keeps_its_models_and_is_complained_of_once(
    asking: Asking, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    server = await asking.server()
    with caplog.at_level(logging.WARNING, logger="engines.remote"):
        factory, told = await asking.factory(server.api)
        server.models = BROKEN_LISTS[what]
        await asked_again(server)
        await asked_again(server)
    assert set(told.specs) == {"demo/chat"}
    assert len(caplog.records) == 1
    assert f"127.0.0.1:{server.port} does not say which models it has" in caplog.text
    assert factory.state()["servers"][0]["error"]


async def test_a_list_without_an_end_is_given_up(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.remote.listing.MAX_BYTES", 1000)
    server = await asking.server(models=http(b" " * 2000))
    factory, told = await asking.factory(server.api)
    assert told.specs == {}
    assert "more than" in factory.state()["servers"][0]["error"]


async def test_the_key_goes_to_the_server_and_nowhere_else(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "sk-secret")
    server = await asking.server()
    factory, _ = await asking.factory(server.api, api_key_env=VARIABLE)
    assert factory.endpoint("demo/chat").headers["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(factory.state())
    (kept,) = (tmp_path / "remote").glob("*.json")
    assert "sk-secret" not in kept.read_text()


async def test_without_its_key_an_engine_asks_nobody_and_says_why(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    server = await asking.server()
    factory, told = await asking.factory(server.api, api_key_env=VARIABLE, models={"mine": "demo/chat"})
    assert set(told.specs) == {"mine"}
    with pytest.raises(EngineUnavailable, match=VARIABLE):
        factory.endpoint("mine")
    assert (factory.state()["state"], server.listed) == ("unavailable", 0)
    assert VARIABLE in factory.state()["error"]


def names(*entries: Any) -> dict[str, Listing]:
    return parse(json.dumps({"data": list(entries)}).encode())


def test_entries_that_name_no_model_are_left_out() -> None:
    assert set(names({"id": ""}, {"id": 7}, {}, {"id": "a\nb"}, {"id": "x" * 1000}, {"id": "good"})) == {"good"}


def test_what_another_roundhouse_lists_is_for_what_it_says_less_what_only_it_can_serve() -> None:
    listed = names(
        {"id": "pirate", "task": "adapter"},
        {"id": "tensors", "task": "tensor"},
        {"id": "odd", "task": "unsupported"},
        {"id": "from-us", "task": "chat", "served_elsewhere": True},
    )
    assert {name: one.task for name, one in listed.items()} == {"pirate": Task.CHAT}


def test_a_bare_list_is_a_list_of_models() -> None:
    assert set(parse(b'[{"id": "one"}]')) == {"one"}


def test_a_list_of_too_many_models_is_none() -> None:
    with pytest.raises(NoList, match="more than 5000"):
        names(*({"id": str(number)} for number in range(5001)))
