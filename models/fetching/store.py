"""Fetched adapters on disk: `<name>-<hash of the address>/<version>/`, complete from the moment that it has this name.

A version is what the storage's ETags say, so a restart finds what it has, and of a changed adapter only the files that
changed are fetched again. The version before stays until the next change: an engine may be reading it. Everything here
blocks, and runs in threads.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import orjson

from models.discovery.safety import os_reason
from models.fetching.address import Address
from models.fetching.storage import Changed, FetchFailed, Remote, Storage

MANIFEST = ".roundhouse.json"  # hidden: discovery does not count it among an adapter's files
LOCK = ".lock"
FETCH_TIMEOUT_S = 1800.0
ROUNDS = 3  # an adapter that is written to meanwhile, or broken off, is begun anew so often
KEPT_ADAPTERS = 8  # times max_adapter_bytes, of those together that no configuration names
SPARE_BYTES = 64 << 20  # stay free on the disk
_LOCK_POLL_S = 0.1


@dataclass(slots=True)
class Progress:
    """Of one fetch; written by its thread, read by others. `stop` ends it."""

    done_bytes: int = 0
    total_bytes: int = 0
    stop: Event = field(default_factory=Event)
    deadline_s: float = field(default_factory=lambda: time.monotonic() + FETCH_TIMEOUT_S)

    def advance(self, size_bytes: int) -> None:
        """Raises FetchFailed when it is to end."""
        self.done_bytes += size_bytes
        if self.stop.is_set():
            raise FetchFailed("the server is shutting down", passing=True)
        if time.monotonic() > self.deadline_s:
            raise FetchFailed(f"it took longer than {FETCH_TIMEOUT_S:.0f} s", passing=True)

    def __str__(self) -> str:
        return f"{self.done_bytes / 2**20:.0f} of {self.total_bytes / 2**20:.0f} MiB" if self.total_bytes else "asking"


class Store:
    """The folder with all fetched adapters. Safe for several threads and processes at once."""

    def __init__(self, folder: Path, storage: Storage, max_bytes: int) -> None:
        self.folder = folder
        self._storage = storage
        self._max_bytes = max_bytes

    def present(self, address: Address) -> Path | None:
        """The newest complete version that is here."""
        with suppress(OSError):  # another process may be deleting it
            return max(self._versions(address), key=lambda path: path.stat().st_mtime_ns, default=None)
        return None

    def update(self, address: Address, progress: Progress, in_use: Collection[Address]) -> Path:
        """The folder with the adapter as the storage has it now, fetched if need be.

        Room is made, where it is short, by deleting what was not used for longest and is not `in_use`. Raises
        FetchFailed.
        """
        try:
            self._home(address).mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._home(address) / LOCK, progress):
                path = self._updated(address, progress, {each.folder_name for each in in_use})
                os.utime(self._home(address))  # used now
                return path
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FetchFailed(f"the disk of the state folder {self.folder} is full", passing=True) from error
            raise FetchFailed(f"it cannot be kept in {self.folder}: {os_reason(error)}") from error

    def _updated(self, address: Address, progress: Progress, in_use: Collection[str]) -> Path:
        for last in (False,) * (ROUNDS - 1) + (True,):
            try:
                files = self._storage.list_adapter(address, self._max_bytes)
                return self._version(address, files, progress, in_use)
            except Changed as error:
                if last:
                    raise FetchFailed("it is written to while it is fetched", passing=True) from error
            except FetchFailed as error:
                broke_off = error.passing and progress.done_bytes > 0 and not progress.stop.is_set()
                if last or not broke_off:
                    raise
        raise AssertionError

    def _version(self, address: Address, files: Sequence[Remote], progress: Progress, in_use: Collection[str]) -> Path:
        home, name = self._home(address), _version_name(files)
        here = {path.name: path for path in self._versions(address)}
        if name in here:
            os.utime(here[name])  # the newest, though an older one may be back
            return here[name]
        partial = home / f".{name}.partial"
        newest = self.present(address)
        self._clear(home, keep=newest)
        progress.done_bytes, progress.total_bytes = 0, sum(file.size_bytes for file in files)
        self._make_room(progress.total_bytes, {*in_use, home.name})
        partial.mkdir(mode=0o700)
        known = _manifest(newest) if newest else {}
        for file in files:
            if newest and known.get(file.name) == [file.etag, file.size_bytes]:
                os.link(newest / file.name, partial / file.name)
                progress.advance(file.size_bytes)
            else:
                self._storage.download(address, file, partial / file.name, progress.advance)
        if self._storage.list_adapter(address, self._max_bytes) != files:
            raise Changed("while it was fetched")  # its files must be of one time
        _write_manifest(partial, address, files)
        partial.rename(home / name)
        return home / name

    def _versions(self, address: Address) -> list[Path]:
        """The complete ones: what is in their manifests is there, in full."""
        with suppress(OSError):  # what cannot be read is fetched anew, or that tells why not
            return [path for path in self._home(address).iterdir() if path.name[0] != "." and _is_complete(path)]
        return []

    def _clear(self, home: Path, keep: Path | None) -> None:
        """Deletes what was half-fetched, and every version but `keep`."""
        for path in home.iterdir():
            if path != keep and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _make_room(self, size_bytes: int, keep: Collection[str]) -> None:
        """Deletes adapters that were not used for longest, until there is room. Raises FetchFailed."""
        others = [path for path in self.folder.iterdir() if path.is_dir() and path.name not in keep]
        others.sort(key=lambda path: path.stat().st_mtime_ns)
        kept_bytes = sum(map(_size_bytes, others))
        while kept_bytes + size_bytes > KEPT_ADAPTERS * self._max_bytes or self._free_bytes() < size_bytes:
            if not others:
                free = max(0, self._free_bytes())
                raise FetchFailed(
                    f"it has {size_bytes:,} bytes, and the disk of the state folder {self.folder} has only {free:,} "
                    "free: make room there, or set ROUNDHOUSE_STATE_DIR",
                    passing=True,
                )
            kept_bytes -= _size_bytes(others[0])
            self._delete(others.pop(0))

    def _delete(self, home: Path) -> None:
        """All versions, unless somebody fetches one at this moment: another thread that began since, or process."""
        with suppress(BlockingIOError), (home / LOCK).open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clear(home, keep=None)  # not the lock, for which others may wait

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free - SPARE_BYTES

    def _home(self, address: Address) -> Path:
        return self.folder / address.folder_name


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Against a second process with this state folder, and a second thread. Waits as long as a fetch may take."""
    with path.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.advance(0)
                progress.stop.wait(_LOCK_POLL_S)
        yield


def _version_name(files: Sequence[Remote]) -> str:
    told = "\n".join(f"{file.name} {file.etag} {file.size_bytes}" for file in files)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _write_manifest(folder: Path, address: Address, files: Sequence[Remote]) -> None:
    told = {"url": str(address), "files": {file.name: [file.etag, file.size_bytes] for file in files}}
    (folder / MANIFEST).write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))


def _manifest(folder: Path) -> dict[str, object]:
    """ETag and size of each file, by name; {} where there is none that can be read."""
    try:
        files = orjson.loads((folder / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return files if isinstance(files, dict) else {}


def _is_complete(folder: Path) -> bool:
    files = _manifest(folder)
    try:
        return bool(files) and all(
            [(folder / name).stat().st_size] == list(said)[1:]  # type: ignore[call-overload]
            for name, said in files.items()
        )
    except (OSError, TypeError):
        return False


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
