"""`python -m app.main` as a process: its start, its size, its end, what it refuses."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench._servers import reserved_port

START_S = 20.0  # generous: the machine may be busy; benchmarks measure the time itself
STOP_S = 30.0
HEAVY = {"torch", "vllm", "transformers", "sentence_transformers"}


@contextlib.contextmanager
def process(tmp_path: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("ROUNDHOUSE_")}
    given |= {"ROUNDHOUSE_MODELS_DIR": str(tmp_path / "models"), "ROUNDHOUSE_STATE_DIR": str(tmp_path / "state")}
    given |= {"XDG_RUNTIME_DIR": str(tmp_path / "r")} if len(str(tmp_path)) < 50 else {}
    command = [sys.executable, "-m", "app.main"]
    running = subprocess.Popen(command, env=given | environment, stderr=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate(timeout=STOP_S)


def get(port: int, path: str) -> bytes:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=START_S) as answer:
                return bytes(answer.read())
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def test_the_process_is_small_imports_no_framework_and_ends_with_0(tmp_path: Path) -> None:
    with reserved_port() as port, process(tmp_path, ROUNDHOUSE_PORT=str(port)) as running:
        assert b'"status"' in get(port, "/health")
        assert b"/v1/chat/completions" in get(port, "/openapi.json")  # FastAPI is imported by now
        status = Path(f"/proc/{running.pid}/status").read_text()
        resident_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        assert resident_kib < 150 * 1024
        maps = Path(f"/proc/{running.pid}/maps").read_text()
        assert not any(f"/{name}/" in maps for name in HEAVY)
        running.send_signal(signal.SIGHUP)  # as when its terminal closes; TERM is sent by the tests of faults
        assert running.wait(STOP_S) == 0


def test_folders_that_cannot_be_made_are_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with process(tmp_path, ROUNDHOUSE_PORT="0", ROUNDHOUSE_STATE_DIR=str(tmp_path / "file" / "state")) as running:
        error = running.communicate(timeout=START_S)[1]
    assert running.returncode == 2
    assert "Let user" in error
    assert "ROUNDHOUSE_STATE_DIR" in error
    assert "Traceback" not in error


def test_importing_the_app_imports_no_framework() -> None:
    code = "import sys, app.main, app.api.build, models.discovery.watch; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=START_S)
    assert not HEAVY & set(output.stdout.split())


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_refuses_to_listen_to_the_network_without_a_key_and_says_what_to_set(tmp_path: Path, host: str) -> None:
    with process(tmp_path, ROUNDHOUSE_HOST=host, ROUNDHOUSE_PORT="0") as running:
        error = running.communicate(timeout=START_S)[1]
        assert running.returncode == 2
        assert "ROUNDHOUSE_API_KEY" in error
        assert "ROUNDHOUSE_ALLOW_ANONYMOUS" in error
        assert "Traceback" not in error


def test_a_port_in_use_is_told_without_a_traceback(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with process(tmp_path, ROUNDHOUSE_PORT=str(taken.getsockname()[1])) as running:
            error = running.communicate(timeout=START_S)[1]
            assert running.returncode == 1
            assert "in use" in error
            assert "Traceback" not in error


def test_a_wrong_setting_is_told_without_a_traceback(tmp_path: Path) -> None:
    with process(tmp_path, ROUNDHOUSE_MAX_WAIT_S="soon") as running:
        error = running.communicate(timeout=START_S)[1]
        assert running.returncode == 2
        assert "ROUNDHOUSE_MAX_WAIT_S" in error
        assert "Traceback" not in error
