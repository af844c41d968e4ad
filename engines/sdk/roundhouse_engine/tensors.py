"""KServe V2's tensors, as JSON and in its binary extension. Values are little-endian, in row-major order."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import RequestError

FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}  # BF16, which has no format, is `raw` alone; BYTES have their length before them


class Tensor:
    """`raw` as on the wire: `numpy.frombuffer(tensor.raw, "<f4").reshape(tensor.shape)` for FP32."""

    def __init__(self, datatype: str, shape: Iterable[int], raw: bytes) -> None:
        self.datatype = datatype
        self.shape = tuple(int(size) for size in shape)
        self.raw = raw

    @classmethod
    def of(cls, datatype: str, shape: Iterable[int], values: Iterable[Any]) -> Tensor:
        """Of a flat list of values, those of BYTES as `str` or `bytes`. Raises ValueError."""
        given = list(values)
        shape = tuple(shape)
        if len(given) != math.prod(shape):
            raise ValueError(f"{len(given)} values for the shape {list(shape)}")
        if datatype == "BYTES":
            texts = [value.encode() if isinstance(value, str) else bytes(value) for value in given]
            return cls(datatype, shape, b"".join(struct.pack("<I", len(text)) + text for text in texts))
        if datatype not in FORMATS:
            raise ValueError(f"values of {datatype} cannot be written one by one; give them in the binary form")
        try:
            return cls(datatype, shape, struct.pack(f"<{len(given)}{FORMATS[datatype]}", *given))
        except (struct.error, OverflowError) as error:
            raise ValueError(f"the values are none of {datatype}: {error}") from None

    def values(self) -> list[Any]:
        """As a flat list, those of BYTES as `bytes`. Raises ValueError."""
        if self.datatype == "BYTES":
            return list(self._texts())
        if self.datatype not in FORMATS:
            raise ValueError(f"{self.datatype} has no values of Python's; read raw")
        try:
            return list(struct.unpack(f"<{math.prod(self.shape)}{FORMATS[self.datatype]}", self.raw))
        except struct.error as error:
            raise ValueError(f"{len(self.raw)} bytes for the shape {list(self.shape)}: {error}") from None

    def _texts(self) -> Iterator[bytes]:
        at = 0
        while at < len(self.raw):
            (length,) = struct.unpack_from("<I", self.raw, at)
            yield self.raw[at + 4 : at + 4 + length]
            at += 4 + length


def infer(engine: Any, body: bytes, header_bytes: int | None) -> tuple[bytes, int | None]:
    """The answer to an inference request and the length of its JSON, None where nothing follows that.

    Raises RequestError, or whatever the engine raises.
    """
    request = json.loads(body[:header_bytes])
    answer = engine.predict(_inputs(request, body[header_bytes or len(body) :]))
    head: dict[str, Any] = {"model_name": request.get("model_name", ""), "outputs": []}
    if "id" in request:
        head["id"] = request["id"]
    wanted = {output["name"]: output.get("parameters", {}) for output in request.get("outputs", ())}
    binary = bool(request.get("parameters", {}).get("binary_data_output"))
    parts: list[bytes] = []
    for name in wanted or answer:
        if name not in answer:
            raise RequestError(f"There is no output {name!r}; there are {', '.join(answer)}.", "outputs")
        tensor: Tensor = answer[name]
        shown: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted.get(name, {}).get("binary_data", binary):
            shown["parameters"] = {"binary_data_size": len(tensor.raw)}
            parts.append(tensor.raw)
        else:
            shown["data"] = [value.decode() if isinstance(value, bytes) else value for value in tensor.values()]
        head["outputs"].append(shown)
    encoded = json.dumps(head, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([encoded, *parts]), len(encoded) if parts else None


def _inputs(request: Any, tail: bytes) -> dict[str, Tensor]:
    found = {}
    at = 0
    for given in request["inputs"]:
        name, datatype, shape = given["name"], given["datatype"], given["shape"]
        size = given.get("parameters", {}).get("binary_data_size")
        if size is not None:
            found[name] = Tensor(datatype, shape, tail[at : at + size])
            at += size
            continue
        try:
            found[name] = Tensor.of(datatype, shape, _flat(given["data"]))
        except ValueError as error:
            raise RequestError(f"The input {name!r}: {error}.", "inputs") from None
    return found


def _flat(data: Any) -> Iterator[Any]:
    for value in data:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value
