"""Real servers with real engines, as a user starts them. Whoever starts one here also proves that nothing is left."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from bench._servers import MARK, ON_TORCH, Server, roundhouse
from demo import facts
from tests.engines.wheels import make_wheel, requirements

KV_CACHE_BYTES = 128 * 2**20
GONE_TIMEOUT_S = 20.0
OLD_VERSION = "1.0"  # of a package that our own environment has in a version of today
CROWD = 300  # requests that may wait for one model of the victim
VICTIM_SETTINGS = """
models:
  own: {engine: own, task: chat}
  own-tensors: {engine: own, task: tensor}
  brief: {keep_alive_s: 0.01}
  narrow: {concurrency: 4}
  mistaken: {engine_args: {no-such-argument: 1}}
"""

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


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that tests fill; each gives its models names of their own."""
    return tmp_path_factory.mktemp("models")


def own_engine(wheels: Path) -> dict[str, object]:
    """The declaration of a package's engine with an old library, which lies in `wheels`."""
    make_wheel(wheels, "packaging", OLD_VERSION)
    return {
        "class": "plugin_engines:Versions",
        "path": str(Path(__file__).parent.parent / "engines"),
        "requirements": requirements(wheels, f"packaging=={OLD_VERSION}"),
        "args": {"package": "packaging"},
    }


@pytest.fixture(scope="session")
def victim(start: Start, folder: Path, demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose engines tests kill and whose folders they break; one is a package's, with an old library."""
    for model in (facts.QWEN3_CHAT, facts.LLAMA_CHAT):
        shutil.copytree(demo_models / model, folder / model)
    for model in ("own", "own-tensors"):
        (folder / model).mkdir()
    (folder / "roundhouse.yaml").write_text(VICTIM_SETTINGS)
    engines = json.dumps({**json.loads(ON_TORCH), "own": own_engine(tmp_path_factory.mktemp("wheels"))})
    with start(models_dir=folder, max_queued_per_model=CROWD, engines=engines, allow_install=True) as server:
        server.wait_warm()
        yield server


@pytest.fixture
def cold(victim: Server) -> None:
    """Every model of the victim is cold when the test begins."""
    for model in victim.get("/v1/models")["data"]:
        victim.post("/v1/model/unload", {"model": model["id"]})
