"""Takes long lists of numbers out of a request's JSON before it is parsed.

orjson holds the interpreter's lock while it parses, in whatever thread: with 4 million numbers for 0.3 s, in which
nobody else is served. `utils.kserve.from_json_text` reads these lists piece by piece instead.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.errors import InvalidRequest
from app.request_body import MAX_COMMAS, MAX_CONTAINERS, parse_document
from models.types import Tensor
from utils.kserve import from_json_text

LONG_BYTES = 1 << 16
MOST_LISTS = 10_000  # that are looked at; those behind are parsed with the rest
WINDOW_BYTES = 1 << 20
SPACE_BYTES = 1024  # behind a list
# Inside a JSON string the quotes would be escaped, so a match is a key. Spelled with \u it is none, and stays.
DATA_MEMBER = re.compile(rb'"data"\s*:\s*\[')
NAME = os.urandom(16).hex()  # what stands for a list: no client can know it

Spans = dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class NumberLists:
    """Lists of the JSON in `head`; `rest` has a string in place of each, by which `spans` tells where it is."""

    head: bytes
    rest: bytes
    spans: Spans = field(default_factory=dict)

    def take(self, name: Any, tensor: Tensor) -> bytes | None:
        """The list for which `name` stands, as raw, once; None where it stands for none.

        Raises TensorError and InvalidRequest.
        """
        span = self.spans.pop(name, None) if isinstance(name, str) else None
        if span is None:
            return None
        try:
            return from_json_text(tensor.datatype, tensor.shape, self.head, *span)
        except orjson.JSONDecodeError:
            parse_document(self.head)  # its error tells the place
            raise


def take_out(head: bytes) -> NumberLists:
    """Raises InvalidRequest for too many numbers."""
    spans: Spans = {}
    parts: list[bytes] = []
    kept_from = at = 0
    for _ in range(MOST_LISTS if len(head) > LONG_BYTES else 0):
        found = DATA_MEMBER.search(head, at)
        if found is None:
            break
        begin = found.end() - 1
        at = _outside(head, begin)
        behind = head[max(begin, at - SPACE_BYTES) : at]
        end = at - len(behind) + len(behind.rstrip().removesuffix(b",").rstrip())
        if end - begin > LONG_BYTES and head[end - 1 : end] == b"]":
            name = f"{NAME}{len(spans)}"
            spans[name] = begin, end
            parts += (head[kept_from:begin], b'"%b"' % name.encode())
            kept_from = end
    _check_sizes(head, spans)
    return NumberLists(head, b"".join([*parts, head[kept_from:]]) if spans else head, spans)


def _outside(head: bytes, begin: int) -> int:
    """Where something begins that is in no list of numbers: a string, or the beginning or end of an object."""
    end = len(head)
    for character in b'"{}':
        found = head.find(character, begin, end)
        end = found if found >= 0 else end
    return end


def _check_sizes(head: bytes, spans: Spans) -> None:
    """As `app.request_body` does for the rest."""
    commas = brackets = 0
    for begin, end in spans.values():
        for start in range(begin, end, WINDOW_BYTES):
            commas += head.count(b",", start, min(end, start + WINDOW_BYTES))
            brackets += head.count(b"[", start, min(end, start + WINDOW_BYTES))
    if commas > MAX_COMMAS or brackets > MAX_CONTAINERS:
        limit = f"{MAX_COMMAS} values" if commas > MAX_COMMAS else f"{MAX_CONTAINERS} lists and objects"
        raise InvalidRequest(f"The body holds more than {limit}.")
