"""The demo models for all tests: made once for each state of their code, and kept between runs."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo import folders

ROOT = Path(__file__).resolve().parent.parent
MAKING_LIMIT_S = 1200.0
"""Many times what making takes on two quiet cores."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Makes them before the first test, whose time limit would not be enough for it."""
    wanted = any("demo_models" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        _make(folders.cache_dir())


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """The folder with the demo models (see `demo.facts`). Tests must not change it."""
    return folders.cache_dir()


def _make(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder.with_suffix(".lock")):
        command = [sys.executable, "-m", "demo", str(folder)]
        done = subprocess.run(command, cwd=ROOT, timeout=MAKING_LIMIT_S, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.exit(f"The demo models could not be made:\n{done.stdout}{done.stderr}", returncode=3)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Holds a lock between test runs; the kernel gives it back when its holder ends."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
