"""The kept choice of a model's backend: `choice.json` and the exported model, in a folder of the model's own.

    <cache>/<name>-<hash of the model's path>/lock, choice.json, <hash of the key>/…

The app reads it to say what was chosen and why; so nothing here imports a framework.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHOICE = "choice.json"
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute a model."""

    backend: str
    dtype: str

    def __str__(self) -> str:
        return f"{NAMES[self.backend]} {self.dtype}"


NAMES = {"torch": "torch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
PLAIN = Candidate("torch", "float32")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a candidate showed, or why it is none: `error` is then a sentence, and the numbers are 0."""

    candidate: Candidate
    single_ms: float = 0.0  # one short text: the median
    texts_per_s: float = 0.0  # in batches of texts of different lengths: the best
    cosine: float = 0.0  # to torch float32: the lowest
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.candidate} not: {self.error}"
        return f"{self.candidate} {self.single_ms:.1f} ms a text and {self.texts_per_s:.0f} texts/s"


@dataclass(frozen=True, slots=True)
class Choice:
    """`key` says for what it was made: another model, library, machine or argument has another one."""

    key: str
    fingerprint: str  # of the model's folder, as the app knows it
    model_path: str
    candidate: Candidate
    file: str = ""  # the exported model, relative to the folder; empty for torch
    size_bytes: int = 0  # of that file
    figures: tuple[Figures, ...] = ()

    def __str__(self) -> str:
        return f"{self.candidate}, by measurement: {'; '.join(map(str, self.figures))}"


def folder_of(cache: Path, model_path: str) -> Path:
    digest = hashlib.sha256(model_path.encode()).hexdigest()[:12]
    return cache / f"{Path(model_path).name[:60]}-{digest}"


def read(folder: Path) -> Choice | None:
    """None where nothing (or nothing whole) is kept."""
    try:
        choice = _decode(json.loads((folder / CHOICE).read_bytes()))
        if choice.file and (folder / choice.file).stat().st_size != choice.size_bytes:
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return choice


def _decode(data: dict[str, Any]) -> Choice:
    figures = tuple(Figures(**{**each, "candidate": Candidate(**each["candidate"])}) for each in data["figures"])
    return Choice(**{**data, "candidate": Candidate(**data["candidate"]), "figures": figures})


def write(folder: Path, choice: Choice) -> None:
    """Keeps `choice`, and removes what older ones of this model left. Raises OSError."""
    aside = folder / f"{CHOICE}.part"
    aside.write_text(json.dumps(asdict(choice), indent=1))
    os.replace(aside, folder / CHOICE)
    for path in folder.iterdir():
        if path.is_dir() and folder / choice.file not in path.iterdir():
            shutil.rmtree(path, ignore_errors=True)


def forget(folder: Path) -> None:
    with suppress(OSError):
        (folder / CHOICE).unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time decides for a model; the kernel frees the lock when its holder ends. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def forget_missing(cache: Path) -> None:
    """Removes what was kept for models whose folders are gone."""
    with suppress(OSError):
        for folder in cache.iterdir():
            choice = read(folder)
            if choice is not None and not Path(choice.model_path).exists():
                shutil.rmtree(folder, ignore_errors=True)
