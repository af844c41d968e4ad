"""The embedding server to compare with: infinity-emb, in a virtual environment of its own, as its users start it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench._servers import LOOPBACK, START_TIMEOUT_S, STOP_TIMEOUT_S, Server, free_port, spawn

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "bench" / "infinity-requirements.txt"
VENV = ROOT / "build" / "infinity-venv"
STAMP = VENV / "made-from.txt"  # the requirements that it was made from, written last
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BATCH = 32  # inputs at a time at most, its default


def environment() -> Path:
    """Its folder of programs. Made on the first call, and anew where the requirements changed; takes a minute."""
    wanted = REQUIREMENTS.read_text()
    if not STAMP.is_file() or STAMP.read_text() != wanted:
        print(f"making {VENV} from {REQUIREMENTS.name}; this happens once", file=sys.stderr)
        uv = [sys.executable, "-m", "uv"]
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(VENV)], check=True)
        install = [*uv, "pip", "install", "--quiet", "--no-deps", "--python", str(VENV / "bin" / "python")]
        subprocess.run([*install, *_torch_source(), "--requirement", str(REQUIREMENTS)], check=True)
        STAMP.write_text(wanted)
    return VENV / "bin"


def _torch_source() -> list[str]:
    """Where CPU torch comes from. uv does not read pip's configuration: wheels that it names are handed on."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    told = os.environ.get("PIP_FIND_LINKS") or subprocess.run(asked, capture_output=True, text=True).stdout
    links = [option for link in told.split() for option in ("--find-links", link)]
    return links or ["--index", TORCH_CPU_INDEX, "--index-strategy", "unsafe-best-match"]


@contextmanager
def infinity(model: Path, name: str, scratch: Path) -> Iterator[Server]:
    """Its server for `model` as `name`, with its own settings; it keeps no answers. Its first answers are slow."""
    port = free_port()
    command = [str(environment() / "infinity_emb"), "v2", "--model-id", str(model), "--served-model-name", name]
    command += ["--no-vector-disk-cache", "--no-model-warmup", "--url-prefix", "/v1", "--log-level", "warning"]
    command += ["--host", LOOPBACK, "--port", str(port)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "HF_HOME": str(scratch / "huggingface")}
    server = spawn(command, env, scratch / f"infinity-{port}.log", port)
    try:
        server.wait_until("/health", START_TIMEOUT_S)
        yield server
    finally:
        server.process.kill()  # it heeds a TERM only between two passes, and has nothing to put in order
        server.process.wait(STOP_TIMEOUT_S)
