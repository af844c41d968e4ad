"""What somebody stops, kills or leaves behind, around launchers and keepers: bounded, told, and never another's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import shared_memory
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from app.run_dir import RunDir
from engines import launcher as launcher_module
from engines.base import EngineStartError
from tests.engines.process_support import (
    GRACE_S,
    START_TIMEOUT_S,
    WAIT_S,
    engine_folders,
    marked_processes,
    plain_engine,
    plain_launcher,
    tree_of,
    until,
    until_gone,
)
from utils import leftovers, procfs

VITAL = "vital::"


async def test_an_engine_ends_at_once_with_a_vital_process_and_says_which() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, vital=VITAL, named_child="vital::core", ignore_sigterm=True)
        await engine.start(START_TIMEOUT_S)
        (core,) = _named(tree_of(engine), VITAL)
        os.kill(core, signal.SIGKILL)
        report = await asyncio.wait_for(engine.wait_exited(), WAIT_S)
        assert report.reason == f"ended with its process vital::core 600 ({core})"
        await engine.stop(GRACE_S)


async def test_an_engine_outlives_its_helpers() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, vital=VITAL, named_child="helper", children=1)
        await engine.start(START_TIMEOUT_S)
        assert engine.process is not None
        helpers = [pid for pid in tree_of(engine) if pid != engine.process.pid]
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
        await until_gone(helpers)
        assert await engine.health()
        await engine.stop(GRACE_S)


def _named(pids: list[int], name: str) -> list[int]:
    return [pid for pid in pids if procfs.command_line(pid).startswith(name)]


async def test_an_engine_whose_keeper_was_stopped_can_be_ended() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, children=1)
        await engine.start(START_TIMEOUT_S)
        assert engine.process is not None
        tree = tree_of(engine)
        os.kill(engine.process.keeper_pid, signal.SIGSTOP)
        await engine.stop(0)
        assert not any(procfs.is_running(pid) for pid in tree)


async def test_a_launcher_that_was_stopped_is_continued_with_the_next_load() -> None:
    async with plain_launcher() as (launcher, context):
        await until(lambda: launcher.state()["state"] == "ready")
        assert launcher.pid is not None
        os.kill(launcher.pid, signal.SIGSTOP)
        engine = plain_engine(launcher, context)
        await engine.start(START_TIMEOUT_S)
        assert launcher.state()["restarts"] == 0
        await engine.stop(GRACE_S)


async def test_a_launcher_whose_import_hangs_is_ended_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_module, "IMPORT_TIMEOUT_S", 0.5)
    async with plain_launcher(PLAIN_PRELOAD="hang") as (launcher, _):
        first = launcher.pid
        await until(lambda: launcher.state()["restarts"] >= 1 and launcher.pid not in (None, first))
        assert "longer than" in launcher.state()["error"]


async def test_a_load_is_told_that_the_import_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_module, "IMPORT_TIMEOUT_S", 0.5)
    async with plain_launcher(PLAIN_PRELOAD="hang") as (launcher, context):
        with pytest.raises(EngineStartError, match="the import took longer than"):
            await plain_engine(launcher, context).start(START_TIMEOUT_S)


async def test_shared_memory_of_an_engine_killed_together_with_its_keeper_is_removed() -> None:
    with engine_folders() as context:
        launcher = launcher_module.Launcher("plain", "tests.engines.plain_runtime", context)
        await launcher.start()
        engine = plain_engine(launcher, context, shared_memory=True)
        await engine.start(START_TIMEOUT_S)
        assert engine.process is not None
        assert len(procfs.shared_memory(engine.process.pid)) == 1
        os.kill(engine.process.keeper_pid, signal.SIGKILL)
        await asyncio.wait_for(engine.wait_exited(), WAIT_S)
        await engine.stop(GRACE_S)
        await launcher.close()


@asynccontextmanager
async def app_of_its_own(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """An app with one engine, and what it told of it; killed at the end."""
    argv = [sys.executable, "-m", "tests.engines.plain_app", str(folder), "1"]
    app = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    try:
        assert app.stdout is not None
        yield app, json.loads(await asyncio.wait_for(app.stdout.readline(), START_TIMEOUT_S))
    finally:
        if app.returncode is None:
            app.kill()
            await app.wait()


async def test_a_start_ends_what_a_dead_app_left_and_leaves_the_engines_of_a_living_one() -> None:
    with TemporaryDirectory(prefix="rh-", dir="/tmp") as parent:
        dead, living = RunDir(Path(parent)), RunDir(Path(parent))
        async with app_of_its_own(dead.path) as (killed, left), app_of_its_own(living.path) as (other, kept):
            for pid in left["launcher"], *left["pids"]:
                os.kill(pid, signal.SIGSTOP)  # so that none can clean up after itself
            killed.kill()
            await killed.wait()
            os.close(dead._lock)  # as the kernel does when its holder dies
            dead._lock = -1
            new = await asyncio.to_thread(RunDir, Path(parent))
            await until_gone([left["launcher"], *left["pids"]])
            assert marked_processes(killed.pid) == []
            assert not dead.path.exists()
            assert living.path.exists()
            assert all(procfs.is_running(pid) for pid in (kept["launcher"], *kept["pids"]))
            new.close()
            other.kill()
            await other.wait()
            await until_gone([kept["launcher"], *kept["pids"]])
        living.close()


def test_only_shared_memory_that_was_written_down_and_is_still_the_same_is_removed(tmp_path: Path) -> None:
    record = tmp_path / ("engine" + leftovers.RECORD_SUFFIX)
    ours, replaced, foreign = (shared_memory.SharedMemory(create=True, size=16) for _ in range(3))
    paths = [Path("/dev/shm", segment.name) for segment in (ours, replaced, foreign)]
    try:
        leftovers.record_shared_memory(record, [str(path) for path in paths[:2]])
        kept = paths[1].rename(paths[1].with_suffix(".kept"))  # so that its inode is not given out again
        paths[1].write_bytes(b"somebody else's by now")
        leftovers.remove_shared_memory(record)
        assert [path.exists() for path in paths] == [False, True, True]
        assert not record.exists()
        kept.unlink()
    finally:
        for segment, path in zip((ours, replaced, foreign), paths, strict=True):
            segment.close()
            path.unlink(missing_ok=True)


def test_a_damaged_record_removes_nothing(tmp_path: Path) -> None:
    record = tmp_path / ("engine" + leftovers.RECORD_SUFFIX)
    record.write_bytes(b'{"/dev/shm/psm_')
    leftovers.remove_shared_memory(record)
    leftovers.remove_shared_memory(tmp_path / "none")
