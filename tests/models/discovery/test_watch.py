"""The watcher against a real file system: what appears, completes, changes or goes is seen within a second."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from watchdog.observers.inotify_c import InotifyFD, Mask, Watch

from models.discovery.scanner import Scanner
from models.discovery.watch import FolderWatcher, _Inotify
from models.types import Availability, ModelOverrides, ModelSpec, Task
from tests.models.discovery.folders import chat_files, safetensors, write_file, write_files, write_safetensors

SEEN_WITHIN_S = 2.0  # half of it on a quiet machine; tests run beside others
FIRST_SCAN_S = 10.0
POLL_S = 0.1

Predicate = Callable[[dict[str, ModelSpec]], bool]


class Listener:
    """What `on_change` was told last, to be waited for."""

    def __init__(self) -> None:
        self.specs: dict[str, ModelSpec] = {}
        self.calls = 0
        self._told = asyncio.Event()

    def __call__(self, specs: list[ModelSpec]) -> None:
        asyncio.get_running_loop()  # raises where it is not called in the event loop
        self.specs = {spec.id: spec for spec in specs}
        self.calls += 1
        self._told.set()

    async def until(self, predicate: Predicate, within_s: float = SEEN_WITHIN_S) -> None:
        async with asyncio.timeout(within_s):
            while not predicate(self.specs):
                self._told.clear()
                await self._told.wait()


@asynccontextmanager
async def watching(models: Path, poll_s: float | None = None) -> AsyncIterator[tuple[Listener, FolderWatcher]]:
    listener = Listener()
    watcher = FolderWatcher(Scanner(models), listener, poll_s=poll_s)
    try:
        async with asyncio.timeout(FIRST_SCAN_S):
            first = await watcher.start()
        listener.specs = {spec.id: spec for spec in first}
        yield listener, watcher
    finally:
        await watcher.stop()


def available(model_id: str) -> Predicate:
    return lambda specs: model_id in specs and specs[model_id].availability is Availability.AVAILABLE


def incomplete(model_id: str) -> Predicate:
    return lambda specs: model_id in specs and specs[model_id].availability is Availability.INCOMPLETE


def gone(model_id: str) -> Predicate:
    return lambda specs: model_id not in specs


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_files(tmp_path / "models" / "first", chat_files())
    return tmp_path / "models"


@pytest.fixture(params=[None, POLL_S], ids=["inotify", "poll"])
def poll_s(request: pytest.FixtureRequest) -> float | None:
    value: float | None = request.param
    return value


async def test_start_returns_the_models_that_are_there(models: Path, poll_s: float | None) -> None:
    async with watching(models, poll_s) as (listener, _):
        assert available("first")(listener.specs)
        assert listener.calls == 0


async def test_a_folder_that_appears_is_seen(models: Path, poll_s: float | None) -> None:
    async with watching(models, poll_s) as (listener, _):
        write_files(models / "org" / "second", chat_files())
        await listener.until(available("org/second"))


async def test_a_folder_that_is_moved_in_and_out_again_is_seen(models: Path, poll_s: float | None) -> None:
    write_files(models.parent / "staging", chat_files())
    async with watching(models, poll_s) as (listener, _):
        (models.parent / "staging").rename(models / "moved")
        await listener.until(available("moved"))
        (models / "moved").rename(models.parent / "staging")
        await listener.until(gone("moved"))


async def test_a_half_copied_folder_completes(models: Path, poll_s: float | None) -> None:
    files = chat_files()
    del files["model.safetensors"]
    async with watching(models, poll_s) as (listener, _):
        write_files(models / "late", files)
        write_safetensors(models / "late" / "model.safetensors", 10_000, written_bytes=500)
        await listener.until(incomplete("late"))
        write_safetensors(models / "late" / "model.safetensors", 10_000)
        await listener.until(available("late"))


async def test_a_file_that_grows_while_it_is_open_completes(models: Path, poll_s: float | None) -> None:
    files = chat_files()
    del files["model.safetensors"]
    write_files(models / "open", files)
    async with watching(models, poll_s) as (listener, _):
        with (models / "open" / "model.safetensors").open("wb") as file:
            file.write(safetensors(10_000))
            file.flush()
            await listener.until(lambda s: any("half-copied" in r for r in s["open"].reasons))
            file.truncate(10_000)
            await listener.until(available("open"))


async def test_a_changed_file_changes_the_verdict(models: Path, poll_s: float | None) -> None:
    async with watching(models, poll_s) as (listener, _):
        write_file(models / "first" / "tokenizer_config.json", {})
        await listener.until(lambda specs: specs["first"].task is Task.COMPLETION)


async def test_replaced_weights_change_the_fingerprint(models: Path, poll_s: float | None) -> None:
    async with watching(models, poll_s) as (listener, _):
        before = listener.specs["first"].fingerprint
        write_safetensors(models / "first" / "model.safetensors", 8192)
        await listener.until(lambda s: s["first"].fingerprint != before and available("first")(s))


async def test_a_deleted_folder_disappears(models: Path, poll_s: float | None) -> None:
    async with watching(models, poll_s) as (listener, _):
        shutil.rmtree(models / "first")
        await listener.until(gone("first"))


async def test_changed_permissions_are_seen(models: Path, poll_s: float | None) -> None:
    link = models / "first" / "chat_template.jinja"
    async with watching(models, poll_s) as (listener, _):
        link.symlink_to("../../outside")
        await listener.until(lambda specs: specs["first"].availability is Availability.UNUSABLE)
        link.unlink()
        await listener.until(available("first"))


async def test_a_models_folder_that_comes_later_is_seen(tmp_path: Path, poll_s: float | None) -> None:
    async with watching(tmp_path / "later" / "models", poll_s) as (listener, _):
        assert listener.specs == {}
        write_files(tmp_path / "later" / "models" / "new", chat_files())
        await listener.until(available("new"))
        write_files(tmp_path / "later" / "models" / "newer", chat_files())
        await listener.until(available("newer"))


async def test_a_models_folder_that_is_replaced_by_another_is_watched_again(models: Path) -> None:
    async with watching(models) as (listener, _):
        os.rename(models, models.parent / "old")
        await listener.until(gone("first"))
        write_files(models / "second", chat_files())
        await listener.until(available("second"))
        write_files(models / "third", chat_files())
        await listener.until(available("third"))


async def test_events_that_never_stop_do_not_hold_up_the_news(models: Path) -> None:
    stop = threading.Event()

    def write_without_end() -> None:
        while not stop.wait(0.02):
            write_file(models / "first" / "README.md", "x")

    writer = threading.Thread(target=write_without_end)
    async with watching(models) as (listener, _):
        writer.start()
        try:
            write_files(models / "second", chat_files())
            await listener.until(available("second"))
        finally:
            stop.set()
            writer.join(SEEN_WITHIN_S)


async def test_scanning_and_reading_make_no_news_of_their_own(models: Path) -> None:
    async with watching(models) as (listener, watcher):
        for _ in range(3):
            (models / "first" / "config.json").read_bytes()
            await watcher.rescan()
        assert listener.calls == 0


async def test_a_touched_readme_never_takes_an_available_model_away(models: Path) -> None:
    async with watching(models, POLL_S) as (listener, watcher):
        write_file(models / "first" / "README.md", "new")
        [spec] = await watcher.rescan()
        assert spec.availability is Availability.AVAILABLE
        assert listener.calls <= 1


async def test_a_folder_still_being_written_is_incomplete_until_it_rests(models: Path) -> None:
    async with watching(models, poll_s=60.0) as (listener, watcher):
        write_files(models / "fresh", chat_files())
        await watcher.rescan()
        assert any("still growing" in reason for reason in listener.specs["fresh"].reasons)


async def test_new_overrides_take_effect_with_a_rescan(models: Path) -> None:
    listener = Listener()
    scanner = Scanner(models)
    watcher = FolderWatcher(scanner, listener, poll_s=60.0)
    await watcher.start()
    try:
        scanner.set_overrides({"first": ModelOverrides(aliases=("one",))})
        await watcher.rescan()
        assert listener.specs["first"].aliases == ("one",)
    finally:
        await watcher.stop()


async def test_stopping_leaves_no_thread_and_no_open_file(models: Path) -> None:
    async with watching(models):
        pass  # the executor's threads are made once, and stay
    threads, files = set(threading.enumerate()), open_files()
    async with watching(models):
        assert set(threading.enumerate()) - threads
    left = {thread.name for thread in set(threading.enumerate()) - threads if not thread.name.startswith("asyncio")}
    assert left == set()
    assert open_files() <= files


def test_a_reader_of_events_that_is_stopped_before_its_thread_runs_leaves_no_open_file() -> None:
    files = open_files()
    _Inotify().stop()
    assert open_files() <= files


def open_files() -> set[tuple[str, str]]:
    """Numbers of this process's open files, and what they are."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


async def test_a_watcher_can_be_stopped_twice_and_before_it_was_started(models: Path) -> None:
    watcher = FolderWatcher(Scanner(models), lambda specs: None)
    await watcher.stop()
    await watcher.start()
    with pytest.raises(RuntimeError):
        await watcher.start()
    await watcher.stop()
    await watcher.stop()


async def test_with_too_few_inotify_watches_the_rest_is_found_by_looking(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = InotifyFD._get_or_create_watch

    def add_first(self: InotifyFD, path: bytes, mask: Mask) -> Watch:
        if path != os.fsencode(models):
            raise OSError(errno.ENOSPC, "inotify watch limit reached")
        return add(self, path, mask)

    monkeypatch.setattr(InotifyFD, "_get_or_create_watch", add_first)
    async with watching(models) as (listener, _):
        write_file(models / "first" / "tokenizer_config.json", {})
        await listener.until(lambda specs: specs["first"].task is Task.COMPLETION)


async def test_without_inotify_watches_left_it_looks_by_itself(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(path: str, handler: object) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr("models.discovery.watch._start_observer", none_left)
    async with watching(models) as (listener, _):
        write_files(models / "second", chat_files())
        await listener.until(available("second"))
