"""What loads were measured to cost, kept in the state folder across restarts: memory in bytes, time in seconds.

Losing this file costs only accuracy: estimates are used again. So a full disk or a damaged file is logged, never fatal.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Measured after a load of one fingerprint of a model's folder."""

    memory_bytes: int
    load_s: float
    fingerprint: str


class FootprintStore:
    """Footprints by model id; `save` writes a whole new file and renames it into place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_id: dict[str, Footprint] = {}
        try:
            raw = orjson.loads(path.read_bytes())
            self._by_id = {str(model_id): _footprint(**entry) for model_id, entry in raw.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
            log.warning("cannot read %s (%s): starting without measured footprints", path, error)

    def get(self, model_id: str, fingerprint: str) -> Footprint | None:
        """None when never measured, or when the folder has changed since."""
        found = self._by_id.get(model_id)
        return found if found and found.fingerprint == fingerprint else None

    def put(self, model_id: str, footprint: Footprint) -> None:
        self._by_id[model_id] = footprint
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(orjson.dumps({key: asdict(value) for key, value in self._by_id.items()}))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("cannot write %s (%s): footprints are lost at exit", self._path, error)


def _footprint(memory_bytes: float, load_s: float, fingerprint: str) -> Footprint:
    """Raises TypeError or ValueError for what we cannot have written: a wrong number would stop the scheduler."""
    found = Footprint(int(memory_bytes), float(load_s), str(fingerprint))
    if not (found.memory_bytes > 0 and found.load_s >= 0):
        raise ValueError(f"no measurement: {found}")
    return found
