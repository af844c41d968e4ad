"""The demo models for all tests: made once for each state of their code, and kept between runs."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo import embedder, folders

ROOT = Path(__file__).resolve().parent.parent
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
SHARED_SERVERS = ("victim", "server")  # fixtures of tests/e2e that start one for many files

# Whoever runs the tests may have settings of a server of their own, and proxies, which some clients would ask even for
# what is on this machine.
for _name in list(os.environ):
    if _name.lower() in PROXIES or (_name.startswith("ROUNDHOUSE_") and _name != "ROUNDHOUSE_DEMO_MODELS_DIR"):
        del os.environ[_name]

# What was started by nohup, or in a script's background, ignores these, and so would all that the tests start.
for _signum, _default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, _default)

_making: list[threading.Thread] = []
_makers: list[subprocess.Popen[str]] = []
_failures: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Test files that need no demo models come first: the models are made meanwhile.

    With several processes (`make test`), the tests of a file, and those that share a server, stay in one of them.
    """
    needing = {item.path for item in items if _needs_models(item)}
    items.sort(key=lambda item: item.path in needing)
    for item in items:
        shared = [name for name in SHARED_SERVERS if name in getattr(item, "fixturenames", ())]
        group = shared[0] if shared and item.path.parent.name == "e2e" else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(map(_needs_models, session.items)) and not session.config.option.collectonly:
        _making.append(threading.Thread(target=_make, args=(folders.cache_dir(),), daemon=True))
        _making[0].start()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Waits for the models here, before a test's time limit begins, which would not be enough for it."""
    if _making and _needs_models(item):
        _making.pop().join()
    if _failures:
        pytest.exit(_failures[0], returncode=3)
    return (yield)


def _needs_models(item: pytest.Item) -> bool:
    return "demo_models" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """The folder with the demo models (see `demo.facts`). Tests must not change it."""
    return folders.cache_dir()


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2, which is not trained here, so that its tests need not wait. Tests must not change it."""
    folder = tmp_path_factory.mktemp("minilm") / "all-MiniLM-L6-v2"
    embedder.make(folder)
    return folder


def _make(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder.with_suffix(".lock")):
        # Nice to the tests that run meanwhile.
        command = ["nice", sys.executable, "-m", "demo", str(folder)]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        maker = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **output)  # type: ignore[call-overload]
        _makers.append(maker)
        told, _ = maker.communicate()
        if maker.returncode != 0:
            _failures.append(f"The demo models could not be made:\n{told}")


def pytest_unconfigure() -> None:
    """Ends the making with all its workers where the tests end before it."""
    for maker in _makers:
        if maker.poll() is None:
            os.killpg(maker.pid, signal.SIGKILL)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Holds a lock between test runs; the kernel gives it back when its holder ends."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
