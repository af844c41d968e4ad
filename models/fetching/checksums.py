"""Compares a file with S3's ETag: the MD5 of its content, or, if it came in parts, the MD5 of the parts' MD5s."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_ETAG = re.compile(r"(?P<digest>[0-9a-f]{32})(?:-(?P<parts>\d{1,5}))?")
_READ_BYTES = 1 << 20


def matches(path: Path, etag: str, part_bytes: Callable[[int], int]) -> bool:
    """False where the file is another than `etag` says; True, too, where that cannot be known.

    `part_bytes` asks for the size of a part, by number from 1.
    """
    found = _ETAG.fullmatch(etag)
    if found is None:
        return True
    if found["parts"] is None:
        return _md5(path, [path.stat().st_size])[0].hex() == found["digest"]
    return _parts_match(path, found["digest"], int(found["parts"]), part_bytes)


def _parts_match(path: Path, digest: str, count: int, part_bytes: Callable[[int], int]) -> bool:
    total_bytes = path.stat().st_size
    first = part_bytes(1)
    if first <= 0 or (first >= total_bytes and count > 1):
        return True  # a server that does not tell the sizes of parts
    sizes = [min(first, total_bytes - first * number) for number in range(count)]
    if sizes[-1] > 0 and sum(sizes) == total_bytes and _digest(path, sizes) == digest:
        return True
    sizes = [first, *(part_bytes(number) for number in range(2, count + 1))]  # parts need not be of one size
    if sum(sizes) != total_bytes:
        return True  # nor does this one
    return _digest(path, sizes) == digest


def _digest(path: Path, sizes: list[int]) -> str:
    return hashlib.md5(b"".join(_md5(path, sizes)), usedforsecurity=False).hexdigest()


def _md5(path: Path, sizes: list[int]) -> list[bytes]:
    """The MD5 of each of the pieces that follow one another in the file; `sizes` in bytes."""
    with path.open("rb") as file:
        digests = []
        for size in sizes:
            digest = hashlib.md5(usedforsecurity=False)
            for data in _read(file.read, size):
                digest.update(data)
            digests.append(digest.digest())
    return digests


def _read(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    while size and (data := read(min(size, _READ_BYTES))):
        size -= len(data)
        yield data
