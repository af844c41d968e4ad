"""KServe's V2 inference protocol, as JSON and gRPC have it in common: datatypes, and tensors between JSON and bytes.

`raw` is a tensor in the form of the protocol's binary extension: little endian, row by row; each element of BYTES has
its length before it, in four bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Array = npt.NDArray[Any]

BYTES, BOOL, BF16 = "BYTES", "BOOL", "BF16"
# As numpy knows them; BF16, which it does not, by its bits.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        BOOL: "?",
        "UINT8": "<u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "INT8": "<i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
        BF16: "<u2",
    }.items()
}
DATATYPES = (*DTYPES, BYTES)
FLOATS = frozenset({"FP16", "FP32", "FP64", BF16})
KINDS: dict[str, set[type]] = {"true and false": {bool}, "whole numbers": {int}, "numbers": {int, float}}
LENGTH = struct.Struct("<I")
PIECE_BYTES = 1 << 17  # of JSON that are parsed at a time
SLICE = 65_536  # elements that are converted at a time: between two of them other threads get their turn


class TensorError(ValueError):
    """What is wrong with a tensor, as the end of a sentence that begins with its name."""


def check_raw(datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> None:
    """Raises TensorError unless `raw` has exactly the elements of `shape`."""
    count = math.prod(shape)
    if datatype == BYTES:
        found = sum(1 for _ in split_bytes(raw))
        if found != count:
            raise TensorError(f"holds {found} elements, and its shape {list(shape)} has {count}")
        return
    needed = count * DTYPES[datatype].itemsize
    if len(raw) != needed:
        raise TensorError(f"holds {len(raw)} bytes, and its shape {list(shape)} of {datatype} needs {needed}")


def split_bytes(raw: bytes | memoryview) -> Iterator[bytes]:
    """The elements of a BYTES tensor. Raises TensorError where a length leads beyond the end."""
    at, end = 0, len(raw)
    while at < end:
        if at + LENGTH.size > end:
            raise TensorError("ends within the length of an element")
        (length,) = LENGTH.unpack_from(raw, at)
        at += LENGTH.size
        if at + length > end:
            raise TensorError(f"has an element of {length} bytes, of which {end - at} are there")
        yield bytes(raw[at : at + length])
        at += length


def from_json(datatype: str, shape: Sequence[int], data: Any) -> bytes:
    """`data` (a list, nested or flat, row by row) as raw. Raises TensorError."""
    nested = any(isinstance(value, list) for value in data)
    flat = list(_flat(data, len(shape))) if nested else data
    count = math.prod(shape)
    if len(flat) != count:
        raise TensorError(f"holds {len(flat)} elements, and its shape {list(shape)} has {count}")
    if datatype == BYTES:
        return b"".join(_element(value) for value in flat)
    parts = (_numbers(datatype, flat[begin : begin + SLICE]) for begin in range(0, count, SLICE))
    return b"".join(part.tobytes() for part in parts)


def from_json_text(datatype: str, shape: Sequence[int], text: bytes, begin: int, end: int) -> bytes:
    """As `from_json`, for a list without strings, not parsed yet, in a part of `text`: piece by piece, as by `SLICE`.

    Raises TensorError, and orjson.JSONDecodeError where it is no JSON.
    """
    count, wanted, parts = 0, math.prod(shape), []
    for piece in _pieces(text, begin, end):
        values = list(_flat(piece, len(shape))) if list in map(type, piece) else piece
        count += len(values)
        if datatype == BYTES:
            parts += [_element(value) for value in values]
        elif count <= wanted:
            parts.append(_numbers(datatype, values).tobytes())
    if count != wanted:
        raise TensorError(f"holds {count} elements, and its shape {list(shape)} has {wanted}")
    return b"".join(parts)


def _pieces(text: bytes, begin: int, end: int) -> Iterator[list[Any]]:
    """The list in this part of `text`, cut at commas: in each piece, lists that were open before are opened again."""
    at, depth = begin, 0
    while at < end:
        cut = text.rfind(b",", at, at + PIECE_BYTES) if end - at > PIECE_BYTES else -1
        cut = cut if cut >= 0 else end
        piece = text[at:cut]
        inner = piece.strip()
        after = depth + piece.count(b"[") - piece.count(b"]")
        nothing_before = at > begin and inner[:1] in (b"]", b"")
        nothing_behind = cut < end and inner[-1:] in (b"[", b"")
        if nothing_before or nothing_behind or (cut < end) != (after > 0):
            raise orjson.JSONDecodeError("no list", "", 0)
        yield orjson.loads(b"[" * depth + piece + b"]" * after)
        depth, at = after, cut + 1


def to_json(datatype: str, raw: bytes | memoryview) -> Array | list[str]:
    """The elements, for orjson with OPT_SERIALIZE_NUMPY. Raises TensorError for BYTES that are not UTF-8."""
    if datatype == BYTES:
        try:
            return [element.decode() for element in split_bytes(raw)]
        except UnicodeDecodeError:
            raise TensorError("holds bytes that are not UTF-8, which JSON cannot; ask for it as binary_data") from None
    array: Array = np.frombuffer(raw, DTYPES[datatype])
    return _widened(array) if datatype == BF16 else array


def from_values(datatype: str, values: Sequence[Any]) -> bytes:
    """As raw, what gRPC servers answer as typed values rather than raw."""
    if datatype == BYTES:
        return b"".join(LENGTH.pack(len(value)) + value for value in values)
    return np.array(values, DTYPES[datatype]).tobytes()


def _flat(data: Any, depth: int) -> Iterator[Any]:
    """The elements of nested lists; no deeper than `depth`, since JSON may be nested without end."""
    for value in data:
        if isinstance(value, list):
            if depth <= 1:
                raise TensorError("is nested more deeply than its shape")
            yield from _flat(value, depth - 1)
        else:
            yield value


def _element(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TensorError(f"must hold strings, not {type(value).__name__}")
    encoded = value.encode()
    return LENGTH.pack(len(encoded)) + encoded


def _numbers(datatype: str, values: list[Any]) -> Array:
    dtype = DTYPES[datatype]
    wanted = "true and false" if datatype == BOOL else "numbers" if datatype in FLOATS else "whole numbers"
    if not set(map(type, values)) <= KINDS[wanted]:
        raise TensorError(f"must hold {wanted}, as {datatype} does")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, "<f4" if datatype == BF16 else dtype)
    except OverflowError:
        raise TensorError(f"holds numbers beyond those of {datatype}") from None
    if datatype == BF16:
        array = _bf16(array)
    if datatype in FLOATS and not np.isfinite(_widened(array) if datatype == BF16 else array).all():
        raise TensorError(f"holds numbers beyond those of {datatype}")  # JSON has no infinity
    return array


def _bf16(values: Array) -> Array:
    """The upper halves of float32, rounded to the nearest, ties to even."""
    bits: Array = values.view("<u4").astype("<u8")
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bits.astype("<u2")


def _widened(bits: Array) -> Array:
    """BF16 as float32."""
    return (bits.astype("<u4") << 16).view("<f4")
