"""Keeps the list of models current: inotify says that something changed, a scan says what.

Events only start a scan, which compares everything with what it read before: a lost or doubled event does no harm.
What inotify does not tell (a file that grows while it is open, a network mount, a models folder that is not there yet)
is found by scanning every now and then, sooner while a model is half-copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterable

from loguru import logger
from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import DEFAULT_EMITTER_TIMEOUT, BaseObserver, EventQueue, ObservedWatch
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
)

from models.discovery.scanner import Scanner
from models.types import Availability, ModelSpec

QUIET_S = 0.25  # after an event, wait for this long without another: copying a folder makes hundreds
BUSY_S = 0.6  # but scan at least this often while events go on
SETTLE_S = 0.2  # a folder that changed this recently may still be missing the file that decides its task
UNFINISHED_RESCAN_S = 0.7  # while a model is half-copied: files that grow make no event that is worth hearing
IDLE_RESCAN_S = 30.0  # while all is well: for what made no event at all
MISSING_RESCAN_S = 0.5  # while the models folder itself is not there
FOLDER_CHECK_S = 0.4  # whether it is still the same folder: renaming the watched folder itself makes no event
SCAN_SHARE = 0.05  # of one core at most, for scans that no event asked for
STOP_S = 5.0  # for the observer's threads to end; they only wait for events

# Not opening and reading, which scans do themselves, and not each write: a large copy makes thousands a second.
_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileClosedEvent,
    FileAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
]


class _Inotify(InotifyFD):
    """watchdog's reader of inotify events, which says when it cannot watch everything.

    The original keeps silent when the kernel gives no more watches for subfolders, and warns at length of each folder
    that it meets twice, which happens whenever folders are made in each other quickly.
    """

    exhausted = False

    def __init__(self) -> None:
        super().__init__()
        self._is_reading = False  # until its thread does: stopped before that, the original never closes its files

    def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
        try:
            with self._lock:
                watch = self._get_or_create_watch(path, mask)
                watch.callbacks[id_] = callback
                return watch.wd
        except OSError as error:
            self.exhausted = self.exhausted or error.errno in {errno.ENOSPC, errno.EMFILE, errno.ENOMEM}
            raise

    @property
    def sees_everything(self) -> bool:
        return self.is_alive() and not self.exhausted


class _QuietEmitter(InotifyEmitter):
    """Asks the kernel for changes of permissions without asking for every write, which watchdog takes together.

    It reads events in a thread of its own: the one that watchdog shares between observers never ends.
    """

    def __init__(
        self,
        event_queue: EventQueue,
        watch: ObservedWatch,
        *,
        timeout: float = DEFAULT_EMITTER_TIMEOUT,
        event_filter: list[type[FileSystemEvent]] | None = None,
    ) -> None:
        self.inotify = _Inotify()
        super().__init__(event_queue, watch, timeout=timeout, event_filter=event_filter, inotify_fd=self.inotify)

    def on_thread_start(self) -> None:
        self.inotify.start()
        super().on_thread_start()

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self.inotify.stop()
        if self.inotify.is_alive():
            self.inotify.join(STOP_S)

    def get_event_mask_from_filter(self) -> Mask:
        return Mask(super().get_event_mask_from_filter() | InotifyConstants.IN_ATTRIB)


class _Handler(FileSystemEventHandler):
    """Calls `notify` in the event loop, once for all events until the loop has taken notice."""

    def __init__(self, loop: asyncio.AbstractEventLoop, notify: Callable[[], None]) -> None:
        self._loop = loop
        self._notify = notify
        self._told = False

    def on_any_event(self, event: FileSystemEvent) -> None:
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._told = False
        self._notify()


class FolderWatcher:
    """Calls `on_change` in the event loop with the whole list whenever it differs from the one before.

    With `poll_s` nothing is watched: the folder is scanned every `poll_s` seconds, for network and bind mounts that
    send no events. A scan reads only what changed and runs in a thread.
    """

    def __init__(
        self, scanner: Scanner, on_change: Callable[[list[ModelSpec]], None], *, poll_s: float | None = None
    ) -> None:
        self._scanner = scanner
        self._on_change = on_change
        self._poll_s = poll_s
        self._specs: list[ModelSpec] = []
        self._changed = asyncio.Event()
        self._scanning = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._observer: BaseObserver | None = None
        self._watched_inode: tuple[int, int] | None = None
        self._may_observe = poll_s is None

    async def start(self) -> list[ModelSpec]:
        """Scans, begins to watch, and returns the first list, for which `on_change` is not called."""
        if self._task is not None:
            raise RuntimeError("the watcher has been started already")
        await self._observe()  # before the scan: what changes after the scan has read it makes an event
        self._specs = await self._scan()
        if (
            self._scanner.unsettled
        ):  # a folder was written a moment ago: look again once rather than call it half-copied
            await asyncio.sleep(SETTLE_S)
            self._specs = await self._scan()
        self._task = asyncio.create_task(self._run(), name="folder-watcher")
        self._task.add_done_callback(_log_failure)
        return self._specs

    async def stop(self) -> None:
        """Ends watching; returns when its threads have ended. `on_change` is not called any more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._stop_observing()

    async def rescan(self) -> list[ModelSpec]:
        """Scans now, as after a change of the configuration, and reports what changed."""
        async with self._scanning:
            specs = await self._scan()
            self._report(specs)
            return specs

    async def _run(self) -> None:
        while True:
            await self._until_due()
            self._changed.clear()
            await self._observe()
            await self.rescan()

    async def _until_due(self) -> None:
        """Returns after events, when the next scan is due without any, or when the models folder is another one."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._next_scan_s()
        while (left_s := due_s - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, FOLDER_CHECK_S)):
                    await self._changed.wait()
                await self._until_quiet()
                return
            if self._observer is not None and await self._root_inode() != self._watched_inode:
                return

    async def _until_quiet(self) -> None:
        """Returns QUIET_S after the last event, or BUSY_S after the first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BUSY_S):
                while self._changed.is_set():
                    self._changed.clear()
                    await asyncio.sleep(QUIET_S)

    def _next_scan_s(self) -> float:
        at_least_s = self._scanner.duration_s / SCAN_SHARE
        if self._scanner.unsettled:
            return SETTLE_S
        if self._poll_s is not None:
            return max(self._poll_s, self._scanner.duration_s)
        if self._observer is None or not _sees_everything(self._observer):
            return max(MISSING_RESCAN_S, at_least_s)
        return max(UNFINISHED_RESCAN_S if _may_change_unseen(self._specs) else IDLE_RESCAN_S, at_least_s)

    async def _scan(self) -> list[ModelSpec]:
        return await asyncio.to_thread(self._scanner.scan, SETTLE_S)

    def _report(self, specs: list[ModelSpec]) -> None:
        if specs != self._specs:
            self._specs = specs
            self._on_change(specs)

    # Watching

    async def _observe(self) -> None:
        """Watches the models folder if it is there and not watched yet, or has been replaced by another of its name."""
        if not self._may_observe:
            return
        inode = await self._root_inode()
        if inode == self._watched_inode:
            return
        await self._stop_observing()
        if inode is None:
            return
        handler = _Handler(asyncio.get_running_loop(), self._changed.set)
        starting = asyncio.create_task(asyncio.to_thread(_start_observer, str(self._scanner.models_dir), handler))
        try:
            self._observer = await asyncio.shield(starting)
            self._watched_inode = inode
            if not _sees_everything(self._observer):
                self._warn("the kernel gives no more watches")
        except asyncio.CancelledError:
            await asyncio.wait({starting})  # a thread cannot be cancelled, and what it started must be stopped
            if starting.exception() is None:
                self._observer = starting.result()
                await self._stop_observing()
            raise
        except OSError as error:
            if await self._root_inode() is not None:
                self._may_observe = False
                self._warn(error.strerror or str(error))

    def _warn(self, why: str) -> None:
        logger.warning(
            "cannot watch all of {} ({}); looking every {} s or so instead. Raise fs.inotify.max_user_watches",
            self._scanner.models_dir, why, MISSING_RESCAN_S,
        )  # fmt: skip

    async def _root_inode(self) -> tuple[int, int] | None:
        return await asyncio.to_thread(_inode, str(self._scanner.models_dir))  # a dead network mount would block

    async def _stop_observing(self) -> None:
        observer, self._observer, self._watched_inode = self._observer, None, None
        if observer is not None:
            observer.stop()
            await asyncio.to_thread(observer.join, STOP_S)


def _start_observer(path: str, handler: FileSystemEventHandler) -> BaseObserver:
    """Adds a watch for each folder below `path`, which takes a while for thousands of them."""
    observer = BaseObserver(_QuietEmitter)
    observer.schedule(handler, os.path.realpath(path), recursive=True, event_filter=_EVENTS)
    observer.start()
    return observer


def _sees_everything(observer: BaseObserver) -> bool:
    return all(isinstance(emitter, _QuietEmitter) and emitter.inotify.sees_everything for emitter in observer.emitters)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.opt(exception=error).error("the models folder is no longer watched: {}", error)


def _inode(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _may_change_unseen(specs: Iterable[ModelSpec]) -> bool:
    return any(spec.availability is Availability.INCOMPLETE for spec in specs)
