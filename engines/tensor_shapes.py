"""The names, types and shapes of a folder's tensors, from the headers of its safetensors files. Reads no weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

HEADER_LIMIT_BYTES = 100 << 20  # the format's own limit
LENGTH_BYTES = 8  # of the header's length, with which a file begins
REMEMBERED_FOLDERS = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dtype` as safetensors spells it: "BF16"."""

    dtype: str
    shape: tuple[int, ...]


def tensors(path: Path, fingerprint: str) -> Mapping[str, Tensor]:
    """By name, of all safetensors files directly in `path`; those of a file that cannot be read are left out.

    Read once for each `fingerprint` of the folder.
    """
    return _tensors(path, fingerprint)


@functools.lru_cache(maxsize=REMEMBERED_FOLDERS)
def _tensors(path: Path, fingerprint: str) -> Mapping[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            found.update(_read(file))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # discovery has judged the files; here they only help to say more
    return MappingProxyType(found)


def _read(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if length > HEADER_LIMIT_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(stream.read(length))
    return {
        name: Tensor(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }
