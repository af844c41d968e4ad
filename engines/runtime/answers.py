"""Answers as JSON, written in pieces: a large one is never in memory whole, and lets others through between pieces.

Numbers go from the arrays to JSON in orjson or as base64; no Python code touches single ones. A piece takes about a
millisecond to write, so it needs no thread (orjson would hold the interpreter's lock there all the same).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from engines.runtime.retrieval import Outputs

Pieces: TypeAlias = Iterator[bytes]  # of one JSON value, in order

PIECE_BYTES = 256 * 1024


def dump(**fields: Any) -> bytes:
    """A small JSON object, arrays of numpy included."""
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def rows_pieces(rows: Outputs) -> Pieces:
    """A list of lists of numbers, as TEI's /embed answers."""
    return list_pieces((orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows), b"[", b"]")


def object_pieces(head: Mapping[str, Any], name: str, entries: Iterable[bytes], tail: Mapping[str, Any]) -> Pieces:
    """An object of the fields in `head`, the list `name` of `entries` (JSON each), and the fields in `tail`."""
    opening = _fields(head) + b"," if head else b""
    closing = b"," + _fields(tail) if tail else b""
    return list_pieces(entries, b"{" + opening + orjson.dumps(name) + b":[", b"]" + closing + b"}")


def list_pieces(entries: Iterable[bytes], opening: bytes, closing: bytes) -> Pieces:
    """`entries` between commas, after `opening` and before `closing`."""
    piece = [opening]
    size = len(opening)
    for entry in entries:
        if size >= PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(entry)
        piece.append(b",")
        size += len(entry) + 1
    if piece[-1] == b",":
        piece.pop()
    yield b"".join([*piece, closing])


def base64_of(row: NDArray[np.float32]) -> bytes:
    """Little-endian float32, as OpenAI's clients read it."""
    return pybase64.b64encode(np.ascontiguousarray(row, dtype="<f4").data)


def _fields(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
