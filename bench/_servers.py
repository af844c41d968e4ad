"""Servers for benchmarks and end-to-end tests: started as a user starts them, ended by their own process id."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from demo.folders import cache_dir

START_TIMEOUT_S = 180.0  # plain vLLM with a cold page cache, on two busy cores
WARM_TIMEOUT_S = 120.0  # importing both frameworks
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02
LOOPBACK = "127.0.0.1"
MARK = "STARTED_BY_BENCH"  # in the environment of a server and of all that it starts, to find what it left


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextmanager
def reserved_port() -> Iterator[int]:
    """A loopback port that nobody else is given meanwhile; servers that take ports up again (SO_REUSEADDR) may listen.

    Not for what sets no such option, to which the port is in use.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((LOOPBACK, 0))
        yield int(held.getsockname()[1])


@dataclass
class Server:
    """A running server: `url` is its root, `log` where its output goes."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    started_s: float  # time.monotonic() right before the process was made
    answered_s: float = 0.0  # from then until /health answered

    def get(self, path: str, timeout_s: float = 10) -> Any:
        """The JSON document at `path`."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            return json.load(answer)

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float = 300) -> Any:
        """The JSON answer to `body`. Raises urllib.error.HTTPError for a status from 400."""
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)

    def first_token_s(self, model: str, question: str, timeout_s: float = START_TIMEOUT_S) -> float:
        """Seconds from sending a streaming chat request to its first content. Raises on any error."""
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "stream": True, "temperature": 0, "max_tokens": 16}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        began = time.monotonic()
        took_s = None
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            for line in answer:
                if took_s is None and line.startswith(b"data: {") and _has_content(line):
                    took_s = time.monotonic() - began
        if took_s is None:
            raise RuntimeError(f"{model} answered {question!r} without any content")
        return took_s

    def wait_until(self, path: str, timeout_s: float) -> float:
        """Polls until `path` answers 200; the seconds since the process was started."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                    if answer.status == 200:
                        return time.monotonic() - self.started_s
            except (OSError, urllib.error.URLError):
                time.sleep(POLL_S)
        raise TimeoutError(f"{path} did not answer within {timeout_s} s:\n{self.log_tail()}")

    def wait_warm(self, engines: tuple[str, ...] = ("vllm", "transformers")) -> None:
        """Waits until the launchers have imported their frameworks."""
        deadline = time.monotonic() + WARM_TIMEOUT_S
        while time.monotonic() < deadline:
            states = self.get("/health")["engines"]
            if all(states[name]["state"] == "ready" for name in engines):
                return
            time.sleep(POLL_S)
        raise TimeoutError(f"the launchers are not warm after {WARM_TIMEOUT_S} s:\n{self.log_tail()}")

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> int:
        """TERM, then wait; its exit status. KILL (and an error) if it does not end in time."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            raise RuntimeError(f"the server did not end within {STOP_TIMEOUT_S} s:\n{self.log_tail()}") from None


def _has_content(line: bytes) -> bool:
    choices = json.loads(line[len(b"data: ") :]).get("choices")
    return bool(choices and choices[0]["delta"].get("content"))


def spawn(command: list[str], env: Mapping[str, str], log: Path, port: int) -> Server:
    """Starts `command`, which will listen on `port`; its output goes to `log`. Not awaited."""
    with log.open("wb") as output:
        started_s = time.monotonic()
        process = subprocess.Popen(command, env=dict(env), stdout=output, stderr=subprocess.STDOUT)
    return Server(process, f"http://{LOOPBACK}:{port}", log, started_s)


ON_TORCH = json.dumps({"transformers": {"args": {"backend": "torch", "dtype": "float32"}}})
ON_THE_FASTEST = "{}"


@contextmanager
def roundhouse(models_dir: Path, scratch: Path, **settings: object) -> Iterator[Server]:
    """`roundhouse serve` on `models_dir`; `settings` become ROUNDHOUSE_*; state and log are under `scratch`.

    Its state is fresh, so each retrieval model would first be measured on every backend: only where `engines` says so.
    """
    with reserved_port() as port:
        values = {
            "models_dir": models_dir,
            "state_dir": scratch / "state",
            "port": port,
            "engines": ON_TORCH,
        } | settings
        env = {name: value for name, value in os.environ.items() if not name.startswith("ROUNDHOUSE_")}
        env |= {f"ROUNDHOUSE_{name.upper()}": str(value) for name, value in values.items()} | {MARK: str(scratch)}
        server = spawn([sys.executable, "-m", "app.cli", "serve"], env, scratch / f"roundhouse-{port}.log", port)
        try:
            server.answered_s = server.wait_until("/health", START_TIMEOUT_S)
            yield server
        finally:
            server.stop()


@contextmanager
def plain_vllm(model: Path, name: str, scratch: Path, *arguments: str) -> Iterator[Server]:
    """vLLM's own server, eager, as its users start it, serving `model` as `name`. Not awaited."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--enforce-eager", "--host", LOOPBACK, "--port", str(port), *arguments]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    env["TMPDIR"] = str(scratch)  # it leaves its sockets there
    server = spawn(command, env, scratch / f"vllm-{port}.log", port)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, for the whole of a program, which a TERM then ends in order: servers first."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-roundhouse-") as name:
            yield Path(name)
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the way out takes as long as the servers need
    raise SystemExit(128 + number)


def demo_models() -> Path:
    """The folder of demo models of this checkout's code, as the tests use it; made on the first call."""
    folder = cache_dir()
    subprocess.run([sys.executable, "-m", "demo", str(folder)], check=True, stdout=sys.stderr)
    return folder
