"""What the log says of the models found: which are served, which are not and why, and how to try one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from models.types import ModelSpec, Task
from utils.logging import logger

SHOWN = 20  # names in one line; a folder may hold thousands

Refusal = Callable[[ModelSpec], str | None]


class Announcer:
    """Tells changes only, after the first time."""

    def __init__(self, models_dir: Path, refusal: Refusal) -> None:
        self._models_dir = models_dir
        self._refusal = refusal
        self._served: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._told = False

    def tell(self, specs: Sequence[ModelSpec]) -> None:
        whys = {spec.id: self._refusal(spec) for spec in specs}
        served = {spec.id: f"{spec.id} ({spec.task})" for spec in specs if whys[spec.id] is None}
        refused = {name: why for name, why in whys.items() if why is not None}
        if not self._told or (served, refused) != (self._served, self._refused):
            count = f"{len(specs)} model{'' if len(specs) == 1 else 's'}"
            logger.info("{} in {}: {} served", count, self._models_dir, len(served))
        _list("Served", [text for name, text in served.items() if name not in self._served])
        for name, why in list(refused.items())[:SHOWN]:
            if self._refused.get(name) != why:
                logger.warning("Not served: {}: {}", name, why)
        _list("No longer there", [name for name in self._served if name not in whys])
        if not self._told or (served and not self._served):
            self._tell_how_to_begin(specs, served)
        self._served, self._refused, self._told = served, refused, True

    def _tell_how_to_begin(self, specs: Sequence[ModelSpec], served: dict[str, str]) -> None:
        chat = [spec.id for spec in specs if spec.task is Task.CHAT and spec.id in served]
        if chat:
            logger.info('Try it: roundhouse chat {} "Hello"; or name it as `model` in any OpenAI client', chat[0])
        elif not served and not self._models_dir.is_dir():
            logger.warning("There is no folder {}: make it, or set ROUNDHOUSE_MODELS_DIR", self._models_dir)
        elif not served:
            logger.warning("Nothing to serve yet: put a model's folder into {}", self._models_dir)


def _list(what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        logger.info("{}: {}{}", what, ", ".join(names[:SHOWN]), more)
