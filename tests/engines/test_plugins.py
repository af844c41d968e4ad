"""Engines of packages: their environments, and their processes, with the real pip and the real launcher."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from roundhouse_engine.__main__ import make

from engines.base import Declaration, EngineContext, EngineStartError, EngineUnavailable
from engines.plugins.environments import digest_of
from engines.plugins.plugin_factory import PluginFactory, create_factory
from engines.process import ProcessEngine
from engines.runtime.plugin_runtime import SDK, InstallFailed, beside, install
from models.types import ModelOverrides, ModelSpec, Task
from tests.engines.process_support import START_TIMEOUT_S, engine_folders, marked_processes, until
from tests.engines.wheels import make_wheel, requirements
from utils import procfs

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENGINES = "tests.engines.plugin_engines"
HERE = str(Path(__file__).parent)
SPEC = ModelSpec("org/own", Path("/nowhere"), Task.CHAT, "own")
OLD = "1.0"  # of a package that our own environment has in a version of today
FAILED_BUILD = """\
  error: subprocess-exited-with-error
  \u00d7 Getting requirements to build wheel did not run successfully.
  │ exit code: 1
  ╰─> [2 lines of output]
      Traceback (most recent call last):
      ValueError: no compiler
      [end of output]
  note: This error originates from a subprocess, and is likely not a problem with pip.
"""


def declared(class_name: str, *wanted: str, **more: Any) -> Declaration:
    given = {"class_path": f"plugin_engines:{class_name}", "path": HERE, "install": True}
    return Declaration(requirements=wanted, **{**given, **more})


@contextlib.asynccontextmanager
async def making(context: EngineContext) -> AsyncIterator[PluginFactory]:
    factory = create_factory(context)
    await factory.start()
    try:
        yield factory
    finally:
        await factory.close()


@contextlib.asynccontextmanager
async def started(factory: PluginFactory, **args: Any) -> AsyncIterator[ProcessEngine]:
    spec = ModelSpec("org/own", Path("/nowhere"), Task.CHAT, "own", overrides=ModelOverrides(engine_args=args))
    engine = factory.create(spec)
    assert isinstance(engine, ProcessEngine)
    await engine.start(START_TIMEOUT_S)
    try:
        yield engine
    finally:
        await engine.stop(5)


async def ask(engine: ProcessEngine, text: str = "hello") -> str:
    body = {"model": "org/own", "messages": [{"role": "user", "content": text}]}
    connector = aiohttp.UnixConnector(str(engine.endpoint.uds))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post("http://engine/v1/chat/completions", json=body) as answer,
    ):
        content: str = (await answer.json())["choices"][0]["message"]["content"]
        return content


@pytest.fixture(scope="module")
def clashing(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The requirement of an old version of a package that we have too."""
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(folder, "packaging", OLD)
    return requirements(folder, f"packaging=={OLD}")


@pytest.fixture(scope="module")
def context(clashing: tuple[str, ...]) -> Iterator[EngineContext]:
    with engine_folders(name="own", declared=declared("Versions", *clashing)) as context:
        yield context


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def factory(context: EngineContext) -> AsyncIterator[PluginFactory]:
    """Its environment is made, in place of one that was broken off, while another server wanted it at the same time.

    And although its user's pip puts what it installs somewhere else.
    """
    environments = context.cache_dir / "environments"
    (environments / "own-0123456789ab").mkdir(parents=True)
    with engine_folders(name="own", declared=context.declared) as elsewhere, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_TARGET", str(environments / "elsewhere"))
        async with making(context) as first, making(replace(elsewhere, cache_dir=context.cache_dir)) as second:
            assert not first.prepared(SPEC)
            assert first.state()["environment_state"] == "not made"
            folder = environments / first.state()["environment"]
            folder.mkdir()
            (folder / "half").touch()
            logs = [each.log_dir / "environment-own.log" for each in (context, elsewhere)]
            with beside(folder, ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                wanted = asyncio.gather(first.prepare(SPEC), second.prepare(SPEC))
                await until(lambda: all(path.exists() and "waiting for another" in path.read_text() for path in logs))
            await wanted
            assert sorted("Successfully installed" in path.read_text() for path in logs) == [False, True]
            assert second.prepared(SPEC)
            yield first


async def test_a_clashing_version_serves_in_an_environment_of_its_own(factory: PluginFactory) -> None:
    assert factory.prepared(SPEC)
    async with started(factory, package="packaging") as engine:
        found, prefix = (await ask(engine)).split()
        assert await engine.health()
        assert engine.memory_bytes() > 1 << 20
    assert (found, version("packaging") != OLD) == (OLD, True)
    assert factory.state()["environment"] in prefix != sys.prefix


async def test_it_is_pinned_whole_used_again_and_old_ones_are_listed(
    factory: PluginFactory, context: EngineContext
) -> None:
    folder = context.cache_dir / "environments" / factory.state()["environment"]
    assert beside(folder, ".pins.txt").read_text() == f"packaging=={OLD}\n"
    assert not (folder / "half").exists()
    async with making(context) as again:
        assert again.prepared(SPEC)
        assert again.state()["environment_state"] == "ready"
        assert again.state()["old_environments"] == ["own-0123456789ab"]


async def test_other_requirements_are_another_environment(tmp_path: Path, clashing: tuple[str, ...]) -> None:
    digests = {digest_of(sys.executable, clashing), digest_of(sys.executable, (*clashing, "more"))}
    wheel = make_wheel(tmp_path, "changing", "1")
    digests.add(digest_of(sys.executable, (str(wheel),)))
    wheel.write_bytes(b"other content")
    digests.add(digest_of(sys.executable, (str(wheel),)))
    assert len(digests) == 4


async def test_what_cannot_be_installed_is_told_and_not_tried_again_at_once(clashing: tuple[str, ...]) -> None:
    wanted = declared("Versions", *clashing[:2], "packaging==99")
    with engine_folders(name="own", declared=wanted) as context:
        async with making(context) as factory:
            with pytest.raises(EngineUnavailable, match=r"No matching distribution found for packaging==99") as caught:
                await factory.prepare(SPEC)
            assert caught.value.retry_after_s > 5
            assert not (context.cache_dir / "environments" / factory.state()["environment"]).exists()
            assert str(context.log_dir) in caught.value.message
            log_path = context.log_dir / "environment-own.log"
            written = log_path.stat()
            with pytest.raises(EngineUnavailable, match="packaging==99"):
                await factory.prepare(SPEC)
            assert log_path.stat() == written
            assert factory.state()["environment_state"] == "failed"
            assert "packaging==99" in factory.state()["environment_detail"]


@pytest.fixture
def deaf_index() -> Iterator[str]:
    """An index that takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"--index-url http://127.0.0.1:{server.getsockname()[1]}/simple"


async def test_an_install_that_hangs_is_ended_after_its_time(deaf_index: str) -> None:
    wanted = declared("Versions", deaf_index, "anything", install_timeout_s=0.5)
    with engine_folders(name="own", declared=wanted) as context:
        async with making(context) as factory:
            with pytest.raises(EngineUnavailable, match=r"longer than 0\.5 s \(install_timeout_s\)"):
                await factory.prepare(SPEC)
            assert factory.preparing(SPEC).startswith("The environment of the engine 'own' could not be made")


async def test_an_install_whose_keeper_is_killed_leaves_nothing_that_the_next_one_trips_over(deaf_index: str) -> None:
    with engine_folders(name="own", declared=declared("Versions", deaf_index, "anything")) as context:
        async with making(context) as factory:
            waiting = asyncio.create_task(factory.prepare(SPEC))
            log_path = context.log_dir / "environment-own.log"
            await until(lambda: log_path.exists() and "Looking in indexes" in log_path.read_text())
            launcher = factory.state()["pid"]
            table = procfs.process_table()
            [keeper] = [pid for pid in procfs.descendants(launcher, table) if table[pid].ppid == launcher]
            os.kill(keeper, signal.SIGKILL)
            with pytest.raises(EngineUnavailable, match="its keeper ended"):
                await waiting
            assert procfs.descendants(launcher) == []
            assert list(context.run_dir.iterdir()) == []


async def test_the_end_ends_an_install_and_whoever_waits_is_told(deaf_index: str) -> None:
    with engine_folders(name="own", declared=declared("Versions", deaf_index, "anything")) as context:
        async with making(context) as factory:
            waiting = asyncio.create_task(factory.prepare(SPEC))
            log_path = context.log_dir / "environment-own.log"
            await until(lambda: log_path.exists() and "Looking in indexes" in log_path.read_text())
            assert "installing the environment of the engine 'own', for" in factory.preparing(SPEC)
            assert factory.state()["environment_state"] == "installing"
            assert len(marked_processes(os.getpid())) > 2
        assert (await asyncio.gather(waiting, return_exceptions=True))[0].__class__ in (
            EngineUnavailable,
            asyncio.CancelledError,
        )


@pytest.mark.parametrize(
    ("class_path", "error", "said"),
    [
        ("no_such_module:Engine", ImportError, "No module named 'no_such_module'"),
        (f"{ENGINES}:NoSuchClass", TypeError, r"no class that derives from roundhouse_engine.Engine"),
        (f"{ENGINES}:Nothing", TypeError, "has none of the methods chat, complete"),
        (f"{ENGINES}:Asynchronous", TypeError, "chat is async; write it as a plain method"),
    ],
)
async def test_a_class_that_is_none_is_refused_with_the_reason(
    class_path: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        make(class_path)


async def test_what_its_load_raises_is_the_reason_of_the_failure() -> None:
    with engine_folders(name="own", declared=declared("Echo")) as context:
        async with making(context) as factory:
            with pytest.raises(EngineStartError, match="RuntimeError: no weights there") as caught:
                async with started(factory, **{"raise": "no weights there"}):
                    pass
            assert "plugin_engines.py" in caught.value.log_tail


async def test_without_requirements_it_runs_with_our_python_and_gets_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abc")
    monkeypatch.setenv("ROUNDHOUSE_API_KEY", "abc")
    monkeypatch.setenv("DATABASE_URL", "postgres://somebody:abc@db/all")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://abc@index/simple")
    with engine_folders(name="own", declared=declared("Environment")) as context:
        async with making(context) as factory:
            assert factory.state()["state"] == "stopped"  # nothing runs before it is needed
            assert factory.prepared(SPEC)
            async with started(factory) as engine:
                *lines, folder = (await ask(engine)).splitlines()
                env = dict(line.split("=", 1) for line in lines if "=" in line)
                assert engine.process is not None
                assert procfs.command_line(engine.process.pid).startswith(sys.executable)
    assert not [name for name, value in env.items() if "abc" in value]
    assert env["PYTHONPATH"] == f"{SDK}:{HERE}"
    assert folder.startswith(str(context.run_dir))


async def test_the_reason_of_a_failure_is_what_failed_and_its_last_words_and_not_pip_s_hints(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{FAILED_BUILD}END\nexit 1\n")
    python.chmod(0o700)
    with pytest.raises(InstallFailed) as caught:
        install({"folder": str(tmp_path / "made"), "python": str(python), "requirements": []})
    assert str(caught.value) == "Getting requirements to build wheel did not run successfully.; ValueError: no compiler"


async def test_what_is_told_of_its_requirements_has_no_passwords() -> None:
    wanted = declared("Versions", "--index-url https://somebody:secret@index/simple", "git+https://secret@host/a.git")
    with engine_folders(name="own", declared=wanted) as context:
        reasons = create_factory(context).reasons(SPEC)
    assert reasons[1] == "its requirements: --index-url https://****@index/simple, git+https://****@host/a.git"


async def test_what_is_not_allowed_or_not_there_is_refused_before_anything_is_evicted(
    clashing: tuple[str, ...],
) -> None:
    with engine_folders(name="own", declared=declared("Versions", *clashing, install=False)) as context:
        verdict = create_factory(context).accepts(SPEC)
    assert not verdict.ok
    assert "allow_install: true" in verdict.reason
    with engine_folders(name="own", declared=declared("Versions", python="/no/python")) as context:
        verdict = create_factory(context).accepts(SPEC)
    assert (verdict.ok, "no interpreter /no/python" in verdict.reason) == (False, True)
