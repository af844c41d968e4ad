"""The private folder for sockets: one per process, short, gone at exit; those of dead processes are removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "roundhouse-"
LOCK = "lock"
BARE_FOLDER_AGE_S = 60.0  # without a lock file this old, its maker died before it could make one
LONGEST = 60  # characters of the parent's path; a socket's whole path is at most 107 bytes


class RunDir:
    """A folder that is ours as long as we hold the lock in it, however we end."""

    def __init__(self, parent: Path | None = None) -> None:
        """Removes stale folders in `parent`, then makes one there."""
        parent = parent or _parent()
        remove_stale(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _parent() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and len(runtime) <= LONGEST and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    temp = Path(tempfile.gettempdir())
    return temp if len(str(temp)) <= LONGEST else Path("/tmp")


def remove_stale(parent: Path) -> None:
    """Removes what dead processes of this user left in `parent`."""
    for path in parent.glob(PREFIX + "*"):
        if _is_stale(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_stale(path: Path) -> bool:
    try:
        status = path.lstat()
        if status.st_uid != os.getuid() or not path.is_dir() or path.is_symlink():
            return False
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return path.is_dir() and time.time() - status.st_mtime > BARE_FOLDER_AGE_S and not any(path.iterdir())
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
