"""Engines of packages: makes their environments, and becomes their Python. Neither imports their code here.

`args` of a request either names what to serve (`Serving`), or what to install (`Installing`). Both run under a keeper,
so that nothing of them outlives the app, however it ends.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from engines.runtime.protocol import EngineRequest

SDK = Path(__file__).resolve().parent.parent / "sdk"  # holds roundhouse_engine and nothing else
COMPLETE = "roundhouse-complete"  # in an environment: the last file to be written
CROSS = "\u00d7 "  # stands before what failed
CAUSES = ("ERROR: ", CROSS, "fatal: ")
CAUSE_LINES = 3
INSTALLERS = ("PIP_", "UV_")  # settings of theirs, addresses with passwords among them, are nothing to engines
PLACES = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")  # where pip puts things is ours to say
_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]+@")  # in an address


class Serving(TypedDict):
    """`python` runs `class_path`, which is imported from `path` ("": from what is installed there)."""

    python: str
    class_path: str
    path: str
    engine_args: Mapping[str, Any]


class Installing(TypedDict):
    """`folder` becomes an environment of `python` with `requirements`."""

    folder: str
    python: str
    requirements: Sequence[str]


class InstallFailed(Exception):
    """The message is one line: what pip said of the cause."""


def preload() -> None:
    """There is nothing that engines of other Pythons could share."""


def cuda_initialized() -> bool:
    return False


def run_engine(request: EngineRequest) -> None:
    os.chdir(request.scratch)  # an empty folder: a Python of today puts where it runs on its path
    if "requirements" in dict(request.args):
        install(cast(Installing, request.args))
    else:
        _serve(request, cast(Serving, request.args))


def _serve(request: EngineRequest, serving: Serving) -> None:
    """Does not return: this process becomes the engine's Python."""
    settings = {
        "class": serving["class_path"],
        "model_path": request.model_path,
        "args": serving["engine_args"],
        "uds": request.uds,
        "ready_fd": request.notify_fd,
    }
    settings_path = Path(request.scratch, "engine.json")
    settings_path.write_text(json.dumps(settings))
    os.set_inheritable(request.notify_fd, True)
    python_path = os.pathsep.join(part for part in (str(SDK), serving["path"]) if part)
    env = {**_harmless(os.environ), "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"}
    os.execve(serving["python"], [serving["python"], "-m", "roundhouse_engine", str(settings_path)], env)


def _harmless(env: Mapping[str, str]) -> dict[str, str]:
    """What of `env` engines get, which was freed of what is named as a secret before."""
    return {
        name: value for name, value in env.items() if not name.startswith(INSTALLERS) and not _PASSWORD.search(value)
    }


# Environments


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def is_complete(folder: Path) -> bool:
    """Whether it was made to its end, and the interpreter that it was made with is still there."""
    return (folder / COMPLETE).is_file() and os.access(python_of(folder), os.X_OK)


def beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def install(installing: Installing) -> None:
    """Makes the environment unless it is there. Raises InstallFailed."""
    folder = Path(installing["folder"])
    with beside(folder, ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another process, which makes this environment", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete(folder):
            return
        if folder.exists():
            print("removing what is left of an attempt that was broken off", flush=True)
            shutil.rmtree(folder)
        temporary = beside(folder, ".tmp")  # on the same disk: what is unpacked there may be large
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            _make(folder, installing, temporary)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # perhaps for want of room, which others need, too
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _make(folder: Path, installing: Installing, temporary: Path) -> None:
    _run([installing["python"], "-m", "venv", "--without-pip", str(folder)], temporary)
    wanted, pins = folder / "requirements.txt", beside(folder, ".pins.txt")
    wanted.write_text("".join(f"{requirement}\n" for requirement in installing["requirements"]))
    # Ours serves every Python; one in each environment would cost it seconds, and Debian's has none without a package.
    pip = [sys.executable, "-m", "pip", "--python", str(python_of(folder))]
    constraints = ["--constraint", str(pins)] if pins.exists() else []  # made before: the same versions again
    report = folder / "report.json"
    quietly = ["--no-input", "--progress-bar=off", "--report", str(report)]
    _run([*pip, "install", *quietly, "--requirement", str(wanted), *constraints], temporary)
    new = beside(folder, ".pins.new")
    new.write_text("".join(f"{pin}\n" for pin in _pins(json.loads(report.read_text()))))
    new.replace(pins)
    (folder / COMPLETE).touch()


def _pins(report: Mapping[str, Any]) -> list[str]:
    """Of pip's report on what it installed; what came from a file or an address has no version to ask for again."""
    found = [
        (item["metadata"]["name"], item["metadata"]["version"]) for item in report["install"] if not item["is_direct"]
    ]
    return sorted(f"{name}=={version}" for name, version in found)


def _run(command: Sequence[str], temporary: Path) -> None:
    """What it puts out goes to the log as it comes. Raises InstallFailed."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}
    for name in ("PYTHONPATH", *PLACES):  # on the first are our own modules, which are not to be found in there
        env.pop(name, None)
    lines: list[str] = []
    try:
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise InstallFailed(f"{command[0]} cannot be started: {error}") from None
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    if process.returncode:
        raise InstallFailed(_cause(lines) or f"{' '.join(command)} ended with exit code {process.returncode}")


def _cause(lines: Sequence[str]) -> str:
    """What pip calls an error or says of a program that failed for it, with that program's last words."""
    causes: dict[str, None] = {}  # as a set in order: it repeats itself
    for before, line in itertools.pairwise(["", *lines]):
        if line.startswith(CAUSES):
            causes[line.removeprefix("ERROR: ").removeprefix(CROSS)] = None
        elif line == "[end of output]":
            causes[before] = None
    return "; ".join([*causes][:CAUSE_LINES] or [line for line in lines if line][-1:])
