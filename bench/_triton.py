"""Triton itself, the server that KServe V2 was made with: the program that nvidia-pytriton brings, and Python models.

pytriton's own way to bind functions is not used: its helper process does not start with every Python.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from bench._servers import LOOPBACK, STOP_TIMEOUT_S, Server, free_port, spawn

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "bench" / "triton-requirements.txt"
MODELS = ROOT / "bench" / "triton_models"
HOME = ROOT / "build" / "triton"  # a virtual environment: by it the models' Python finds their packages
STAMP = HOME / "made-from.txt"  # the requirements that it was made from, written last
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PACKAGES = HOME / "lib" / f"python{PYTHON}" / "site-packages"
LIBRARIES = PACKAGES / "nvidia_pytriton.libs"
TRITON = PACKAGES / "pytriton" / "tritonserver"
BACKENDS = TRITON / "backends"
STUB = "triton_python_backend_stub"  # the process that runs a Python model; there is one for each version of Python
START_TIMEOUT_S = 60.0


def lacks_library() -> str:
    """Why Triton's Python models cannot run here, or ""."""
    name = f"libpython{PYTHON}.so.1.0"
    try:
        ctypes.CDLL(name)
    except OSError:
        return f"{name} is missing: apt-get install libpython{PYTHON}"
    return ""


def install() -> Path:
    """The server's folder. Made on the first call, and anew where the requirements changed; takes a few seconds."""
    HOME.parent.mkdir(exist_ok=True)
    with HOME.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = REQUIREMENTS.read_text() + sys.version
        if not STAMP.is_file() or STAMP.read_text() != wanted:
            shutil.rmtree(HOME, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(HOME)], check=True)
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(HOME / "bin" / "python")]
            install = [*pip, "install", "--quiet", "--no-deps", "--no-compile", "--requirement", str(REQUIREMENTS)]
            subprocess.run(install, check=True)
            shutil.copy(TRITON / "python_backend_stubs" / PYTHON / STUB, BACKENDS / "python" / STUB)
            STAMP.write_text(wanted)
    return TRITON


@dataclass
class Triton:
    """A running one, with `http` and `grpc` as `kind: triton` takes them."""

    server: Server
    http: str
    grpc: str

    def kill(self) -> None:
        """As a machine that loses its power."""
        with suppress(psutil.NoSuchProcess):  # it was killed before
            server = psutil.Process(self.server.process.pid)
            for process in (*server.children(recursive=True), server):  # those of its models would not all notice
                process.kill()
        self.server.process.wait(STOP_TIMEOUT_S)


@contextmanager
def triton(scratch: Path, *, models: Path = MODELS, http: str = "", grpc: str = "") -> Iterator[Triton]:
    """With all models in `models`; at the addresses `http` and `grpc`, where one was that has gone."""
    http_port, grpc_port = (urlsplit(url).port or free_port() for url in (http, grpc))
    shared = f"triton_{os.getpid()}_{http_port}_"
    command = [str(install() / "bin" / "tritonserver"), f"--model-repository={models}", "--allow-metrics=false"]
    command += [
        f"--backend-directory={BACKENDS}",
        f"--backend-config=python,shm-region-prefix-name={shared}",
    ]
    command += [f"--http-address={LOOPBACK}", f"--http-port={http_port}"]
    command += [f"--grpc-address={LOOPBACK}", f"--grpc-port={grpc_port}", "--exit-timeout-secs=5"]
    libraries = [str(LIBRARIES), sysconfig.get_config_var("LIBDIR") or "", os.environ.get("LD_LIBRARY_PATH", "")]
    env = os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, libraries)), "PYTHONDONTWRITEBYTECODE": "1"}
    env["PATH"] = f"{HOME / 'bin'}:{env['PATH']}"
    server = spawn(command, env, scratch / f"triton-{http_port}.log", http_port)
    running = Triton(server, server.url, f"grpc://{LOOPBACK}:{grpc_port}")
    try:
        server.wait_until("/v2/health/ready", START_TIMEOUT_S)
        yield running
    finally:
        running.kill()  # it looks only once a second whether it may end
        for left in Path("/dev/shm").glob(f"{shared}*"):  # of one that was killed
            left.unlink(missing_ok=True)
