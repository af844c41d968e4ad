"""Launchers, keepers and engine processes against the real kernel, with a runtime that misbehaves to order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from engines.base import EngineContext, EngineStartError
from engines.engine_process import exit_report
from engines.launcher import MARK, Launcher, launcher_environment
from engines.process import engine_files
from engines.runtime.keeper import bound_log
from tests.engines.process_support import (
    GRACE_S,
    PLAIN_RUNTIME,
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
from utils import procfs


async def test_an_engine_is_forked_answers_and_leaves_nothing_behind() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context)
        report = await engine.start(START_TIMEOUT_S)
        assert (report.started_by, launcher.state()["state"]) == ("fork", "ready")
        assert engine.memory_bytes() > 1024**2
        assert await engine.health()
        tree = tree_of(engine)
        await engine.stop(GRACE_S)
        assert not any(procfs.is_running(pid) for pid in tree)
        assert engine.memory_bytes() == 0
        assert not await engine.health()
        assert list(context.run_dir.iterdir()) == []


async def test_an_engine_leads_a_session_of_its_own_with_temporary_files_of_its_own() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context)
        await engine.start(START_TIMEOUT_S)
        assert engine.process is not None
        info = procfs.read_process(engine.process.pid)
        assert info is not None
        assert info.session == engine.process.pid
        assert f"temporary files in {context.run_dir}" in engine.process.log_path.read_text()
        await engine.stop(GRACE_S)


async def test_the_launcher_is_deaf_to_the_terminals_control_c() -> None:
    async with plain_launcher() as (launcher, context):
        await plain_engine(launcher, context, "x").stop(0)  # never started: nothing to end
        assert launcher.pid is not None
        assert os.getsid(launcher.pid) != os.getsid(0)


async def test_stop_ends_children_daemons_and_exec_ed_grandchildren() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, children=2, escapes=2, exec_child=True)
        await engine.start(START_TIMEOUT_S)
        tree = tree_of(engine)
        assert len(tree) == 1 + 2 + 2 + 1
        await engine.stop(GRACE_S)
        assert not any(procfs.is_running(pid) for pid in tree)


async def test_an_engine_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, ignore_sigterm=True)
        await engine.start(START_TIMEOUT_S)
        await engine.stop(0.2)
        report = await engine.wait_exited()
        assert (report.signal, report.reason) == (signal.SIGKILL, "stopped by the app")


async def test_stop_may_be_called_twice_and_at_the_same_time() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context)
        await engine.start(START_TIMEOUT_S)
        await asyncio.gather(engine.stop(GRACE_S), engine.stop(0))
        await engine.stop(GRACE_S)


async def test_an_idle_engine_that_is_killed_is_reported_with_its_tree_gone_and_others_unaffected() -> None:
    async with plain_launcher() as (launcher, context):
        victim, other = (
            plain_engine(launcher, context, "a", children=1, escapes=1),
            plain_engine(launcher, context, "b"),
        )
        await victim.start(START_TIMEOUT_S)
        await other.start(START_TIMEOUT_S)
        assert victim.process is not None
        tree = tree_of(victim)
        os.kill(victim.process.pid, signal.SIGKILL)
        report = await asyncio.wait_for(victim.wait_exited(), WAIT_S)
        assert (report.signal, report.exit_code) == (signal.SIGKILL, None)
        assert "SIGKILL" in report.reason
        await victim.stop(GRACE_S)
        assert not any(procfs.is_running(pid) for pid in tree)
        assert await other.health()
        await victim.start(START_TIMEOUT_S)  # the same engine starts again
        await victim.stop(GRACE_S)
        await other.stop(GRACE_S)


async def test_an_engine_that_is_killed_while_it_loads_fails_its_load_at_once() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, hang=True, children=1)
        start = asyncio.create_task(engine.start(START_TIMEOUT_S))
        await until(lambda: engine.process is not None and len(engine.process.pids()) == 2)
        assert engine.process is not None
        tree = tree_of(engine)
        os.kill(engine.process.pid, signal.SIGKILL)
        with pytest.raises(EngineStartError, match="SIGKILL") as caught:
            await asyncio.wait_for(start, WAIT_S)
        assert caught.value.interrupted
        assert not any(procfs.is_running(pid) for pid in tree)


async def test_an_engine_that_is_stopped_while_it_loads_fails_its_load_long_before_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engines.process.LOOK_S", 0.02)
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, hang=True)
        start = asyncio.create_task(engine.start(1000.0))
        await until(lambda: engine.process is not None and engine.process.pid != 0)
        assert engine.process is not None
        tree = tree_of(engine)
        os.kill(engine.process.pid, signal.SIGSTOP)
        with pytest.raises(EngineStartError, match="was stopped") as caught:
            await asyncio.wait_for(start, WAIT_S)
        assert caught.value.interrupted
        assert not any(procfs.is_running(pid) for pid in tree)


async def test_a_load_that_raises_names_its_cause_and_shows_the_end_of_its_log() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, **{"raise": "incomplete metadata"})
        with pytest.raises(EngineStartError, match="ValueError: incomplete metadata") as caught:
            await engine.start(START_TIMEOUT_S)
        assert "Traceback" in caught.value.log_tail
        assert engine.memory_bytes() == 0


async def test_a_load_that_takes_too_long_is_ended() -> None:
    before = set(marked_processes(os.getpid()))
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, hang=True, escapes=1)
        with pytest.raises(EngineStartError):
            await engine.start(1.0)
        assert len(set(marked_processes(os.getpid())) - before) == 1  # the launcher


async def test_a_cancelled_load_is_gone_before_the_cancellation_goes_on() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, hang=True, escapes=1)
        start = asyncio.create_task(engine.start(START_TIMEOUT_S))
        await until(lambda: engine.process is not None and len(engine.process.pids()) == 2)
        tree = tree_of(engine)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not any(procfs.is_running(pid) for pid in tree)


async def test_a_load_waits_for_the_import_and_a_cancelled_wait_leaves_nothing() -> None:
    async with plain_launcher(PLAIN_PRELOAD="hang") as (launcher, context):
        assert launcher.state()["state"] == "importing"
        with pytest.raises(EngineStartError, match="importing"):
            await plain_engine(launcher, context).start(0.2)


@pytest.mark.parametrize(("preload", "reason"), [("thread", "2 threads"), ("cuda", "CUDA")])
async def test_a_launcher_that_must_not_fork_starts_engines_by_exec_and_says_why(preload: str, reason: str) -> None:
    async with plain_launcher(PLAIN_PRELOAD=preload) as (launcher, context):
        engine = plain_engine(launcher, context, children=1, escapes=1)
        report = await engine.start(START_TIMEOUT_S)
        state = launcher.state()
        assert (report.started_by, state["start_method"]) == ("exec", "exec")
        assert reason in state["reason"]
        tree = tree_of(engine)
        await engine.stop(GRACE_S)
        assert not any(procfs.is_running(pid) for pid in tree)


async def test_an_import_that_fails_is_the_cause_of_every_load_until_it_succeeds() -> None:
    async with plain_launcher(PLAIN_PRELOAD="raise") as (launcher, context):
        await until(lambda: launcher.state()["state"] == "failed")
        with pytest.raises(EngineStartError, match="No module named 'framework'"):
            await plain_engine(launcher, context).start(0.2)


async def test_a_killed_launcher_takes_its_engines_along_and_is_started_again() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, children=1, escapes=1, ignore_sigterm=True)
        await engine.start(START_TIMEOUT_S)
        tree, first = tree_of(engine), launcher.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await asyncio.wait_for(engine.wait_exited(), WAIT_S)
        await engine.stop(GRACE_S)
        await until_gone(tree)
        await until(lambda: launcher.state()["state"] == "ready" and launcher.pid != first)
        assert launcher.state()["restarts"] == 1
        await engine.start(START_TIMEOUT_S)
        await engine.stop(0)


@pytest.mark.parametrize("with_launcher", [False, True])
async def test_an_engine_whose_keeper_is_killed_ends_with_all_that_it_started(with_launcher: bool) -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, children=1, escapes=1)
        await engine.start(START_TIMEOUT_S)
        assert engine.process is not None
        assert launcher.pid is not None
        tree = tree_of(engine)
        if with_launcher:
            os.kill(launcher.pid, signal.SIGKILL)
        os.kill(engine.process.keeper_pid, signal.SIGKILL)
        report = await asyncio.wait_for(engine.wait_exited(), WAIT_S)
        assert "keeper" in report.reason or report.signal is not None
        await engine.stop(GRACE_S)
        await until_gone(tree)
        await until(lambda: launcher.state()["state"] == "ready")


async def test_nothing_survives_an_app_that_is_killed() -> None:
    with TemporaryDirectory(prefix="rh-", dir="/tmp") as folder:
        argv = [sys.executable, "-m", "tests.engines.plain_app", folder, "2"]
        app = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        assert app.stdout is not None
        told = json.loads(await asyncio.wait_for(app.stdout.readline(), START_TIMEOUT_S))
        assert all(procfs.is_running(pid) for pid in told["pids"])
        app.kill()
        await app.wait()
        await until_gone([told["launcher"], *told["pids"]])
        assert marked_processes(app.pid) == []
        assert not [name for name in os.listdir(folder) if name.endswith((".sock", ".tmp"))]


async def test_nothing_survives_an_app_that_is_killed_together_with_its_launcher() -> None:
    with TemporaryDirectory(prefix="rh-", dir="/tmp") as folder:
        argv = [sys.executable, "-m", "tests.engines.plain_app", folder, "1"]
        app = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        assert app.stdout is not None
        told = json.loads(await asyncio.wait_for(app.stdout.readline(), START_TIMEOUT_S))
        os.kill(told["launcher"], signal.SIGKILL)
        app.kill()
        await app.wait()
        await until_gone(told["pids"])


async def test_shared_memory_of_a_killed_engine_is_removed() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context, shared_memory=True)
        await engine.start(START_TIMEOUT_S)
        assert engine.process is not None
        paths = procfs.shared_memory(engine.process.pid)
        assert len(paths) == 1
        os.kill(engine.process.pid, signal.SIGKILL)
        await engine.stop(GRACE_S)
        assert not {Path(path).name for path in paths} & set(os.listdir("/dev/shm"))


async def test_a_stale_socket_is_replaced_and_the_previous_log_kept_as_dot_1() -> None:
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context)
        uds, log_path = engine_files(context, "plain", "org/model")
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(uds))
        log_path.write_text("of an earlier run")
        await engine.start(START_TIMEOUT_S)
        assert await engine.health()
        await engine.stop(GRACE_S)
        assert log_path.with_name(log_path.name + ".1").read_text() == "of an earlier run"


def test_our_settings_and_keys_are_kept_from_the_launcher() -> None:
    base = {"ROUNDHOUSE_API_KEYS": "secret", "PATH": "/bin", "VLLM_API_KEY": "secret"}
    env = launcher_environment(base, {"VLLM_API_KEY": None}, {MARK: "mark"})
    assert "secret" not in env.values()
    assert (env["PATH"], env[MARK]) == ("/bin", "mark")


def test_the_launcher_s_cuda_counts_gpus_as_nvml_does() -> None:
    env = launcher_environment({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, {}, {})
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "PGPASSWORD", "DB_PASSWORD"]
)
def test_credentials_of_the_user_are_kept_from_the_launcher(name: str) -> None:
    assert "secret" not in launcher_environment({name: "secret"}, {}, {}).values()


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "VLLM_A_TOKEN_THRESHOLD", "LD_LIBRARY_PATH"])
def test_settings_that_are_no_secrets_reach_the_launcher(name: str) -> None:
    assert launcher_environment({name: "1"}, {}, {})[name] == "1"


async def test_engines_start_and_serve_while_no_log_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.engine_log.rotate", lambda path: path.symlink_to("/dev/full"))
    async with plain_launcher() as (launcher, context):
        engine = plain_engine(launcher, context)
        assert (await engine.start(START_TIMEOUT_S)).started_by == "fork"
        assert await engine.health()
        await engine.stop(GRACE_S)
        with pytest.raises(EngineStartError, match="the weights are broken"):
            await plain_engine(launcher, context, "other", **{"raise": "the weights are broken"}).start(START_TIMEOUT_S)


def test_the_files_of_two_models_differ_and_hold_no_path_of_the_model_id(tmp_path: Path) -> None:
    context = EngineContext(Path("/tmp/r"), Path("/tmp/l"), tmp_path, "cpu")
    uds, log_path = engine_files(context, "vllm", "../../etc/passwd")
    assert (uds.parent, log_path.parent) == (Path("/tmp/r"), Path("/tmp/l"))
    assert uds != engine_files(context, "vllm", "..-..-etc-passwd")[0]
    with pytest.raises(ValueError, match="shorter"):
        engine_files(EngineContext(Path("/" + "x" * 100), tmp_path, tmp_path, "cpu"), "vllm", "a")


def test_an_exit_is_put_in_words() -> None:
    log_text = "Traceback (most recent call last):\n  File x\nsafetensors.SafetensorError: incomplete metadata\n"
    assert exit_report(1, None, "", log_text).reason == (
        "safetensors.SafetensorError: incomplete metadata (ended with exit code 1)"
    )
    assert exit_report(None, 9, "", "").reason.startswith("ended by SIGKILL")
    assert exit_report(0, None, "", "").reason == "ended by itself, without a request to stop"


def test_a_log_that_grew_too_long_starts_again(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    log_path.write_bytes(b"a" * 60 + b"b" * 60)
    bound_log(str(log_path), 100)
    assert log_path.stat().st_size == 0
    assert Path(f"{log_path}.1").read_bytes() == b"b" * 50


async def test_a_python_that_does_not_exist_is_named_and_nothing_waits_for_it() -> None:
    with engine_folders() as context:
        launcher = Launcher("plain", PLAIN_RUNTIME, context, python="/no/such/python")
        await launcher.start()
        await until(lambda: launcher.state()["state"] == "failed")
        with pytest.raises(EngineStartError, match="/no/such/python"):
            await plain_engine(launcher, context).start(START_TIMEOUT_S)
        await launcher.close()
        assert launcher.state()["state"] == "stopped"
