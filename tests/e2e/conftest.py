"""Real servers with real engines, as a user starts them. Whoever starts one here also proves that nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from bench._servers import MARK, Server, roundhouse

KV_CACHE_BYTES = 128 * 2**20
GONE_TIMEOUT_S = 20.0

Start = Callable[..., AbstractContextManager[Server]]


def processes_of(scratch: Path) -> list[psutil.Process]:
    """Every process that was started, directly or not, by a server with this scratch folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(scratch):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def assert_nothing_left(scratch: Path) -> None:
    """Bounded: the kernel may take a moment to end what was killed."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while (left := processes_of(scratch)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=1)
    assert [(process.pid, process.cmdline()) for process in left] == []


@pytest.fixture(scope="session")
def start(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`with start(setting=value, …) as server`: on the demo models, or on `models_dir`; its files are in `scratch`."""

    @contextmanager
    def starting(**settings: object) -> Iterator[Server]:
        scratch = Path(str(settings.pop("scratch", None) or tmp_path_factory.mktemp("server")))
        chosen = {"models_dir": demo_models, "kv_cache_bytes": KV_CACHE_BYTES} | settings
        folder = Path(str(chosen.pop("models_dir")))
        try:
            with roundhouse(folder, scratch, **chosen) as server:
                yield server
        finally:
            assert_nothing_left(scratch)

    return starting


@pytest.fixture(scope="session")
def server(start: Start) -> Iterator[Server]:
    """One server for all tests that only ask: every demo model may stay resident."""
    with start() as running:
        yield running
