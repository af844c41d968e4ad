"""What servers elsewhere said last that they have, kept for when they are down as Roundhouse starts."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

log = logging.getLogger(__name__)

L = TypeVar("L")


class KeptLists(Generic[L]):
    """By URL, then by the servers' names, in one file for each engine. Losing it costs only what is not up at start."""

    def __init__(self, cache_dir: Path, kind: str, engine: str, listing: type[L]) -> None:
        """`listing`: a dataclass, what is told of one model."""
        name = hashlib.sha256(engine.encode()).hexdigest()[:16]
        self._path = cache_dir / "remote" / f"{kind}-{name}.json"
        self._form: TypeAdapter[dict[str, dict[str, L]]] = TypeAdapter(dict[str, dict[str, listing]])  # type: ignore[valid-type]

    def read(self) -> dict[str, dict[str, L]]:
        try:
            return self._form.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            log.warning("cannot read %s (%s): servers are asked anew what they have", self._path, error)
            return {}

    def write(self, lists: Mapping[str, Mapping[str, L]]) -> None:
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.write_bytes(self._form.dump_json({url: dict(listed) for url, listed in lists.items()}))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("cannot write %s (%s): what servers have is forgotten at exit", self._path, error)
