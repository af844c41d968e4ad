"""The demo models' folders: which are there, which are ours, and how new ones come into view whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = "demo.json"
"""In each folder that was made here. What has no marker belongs to the user, and is never replaced."""

WORK_PREFIX = ".demo-being-made-"
"""Of the folder in which models are made, inside the models folder; its name goes on with the maker's process id."""

_CONFIGS = {"config.json": "model.safetensors", "adapter_config.json": "adapter_model.safetensors"}


def digest() -> str:
    """A short digest of this package's code: other code may make other models."""
    whole = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        whole.update(source.name.encode())
        whole.update(source.read_bytes())
    return whole.hexdigest()[:16]


def cache_dir() -> Path:
    """Where tests and benchmarks keep the models of this very code: below $ROUNDHOUSE_DEMO_MODELS_DIR, if set."""
    default = Path(__file__).resolve().parent.parent / "build" / "demo-models"
    return Path(os.environ.get("ROUNDHOUSE_DEMO_MODELS_DIR", default)).absolute() / digest()


def is_empty(models_dir: Path) -> bool:
    """Whether a models folder holds nothing at all, or is not there."""
    try:
        return all(name.startswith(WORK_PREFIX) for name in os.listdir(models_dir))
    except FileNotFoundError:
        return True


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter with its weights."""
    return any((folder / config).is_file() and (folder / weights).is_file() for config, weights in _CONFIGS.items())


def is_ours(folder: Path) -> bool:
    """Whether the folder was made by this package."""
    return (folder / MARKER).is_file()


def mark(folder: Path) -> None:
    """Marks a folder as made here."""
    text = json.dumps({"made_by": "python -m demo", "code": digest()}, indent=2)
    (folder / MARKER).write_text(text + "\n", encoding="utf-8")


@contextmanager
def work_folder(models_dir: Path) -> Iterator[Path]:
    """A hidden folder inside `models_dir` (so that renaming is atomic), gone afterwards; also removes stale ones."""
    models_dir.mkdir(parents=True, exist_ok=True)
    for stale in models_dir.glob(WORK_PREFIX + "*"):
        if not _is_being_made(stale):
            shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{WORK_PREFIX}{os.getpid()}-", dir=models_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(made: Path, target: Path) -> bool:
    """Renames a finished folder into place; False when the place is taken by a folder that is not ours.

    A folder of ours that is there already is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if not is_ours(target):
            return False
        target.rename(made.parent / f"{made.name}.replaced")
    try:
        made.rename(target)
    except OSError:  # taken in this very moment, by somebody else's folder
        if target.exists():
            return False
        raise
    return True


def _is_being_made(folder: Path) -> bool:
    pid = folder.name.removeprefix(WORK_PREFIX).split("-")[0]
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
