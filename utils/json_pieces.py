"""Large JSON documents decoded in pieces of a few milliseconds, between which an event loop gets its turn.

orjson holds the interpreter's lock for as long as it decodes (0.4 s for 64 MiB), so that a thread would hold the loop
up just as long.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

WHOLE_BYTES = 1 << 20  # decoded at once up to here
PIECE_BYTES = 512 * 1024  # 1 ms of text, 6 ms of numbers
STEPS = 8192  # strings and brackets that are passed in one turn: some ms
MOST_PARTS = 1_000_000  # strings and brackets; no request needs more

_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_COMMA = re.compile(rb"[ \t\r\n]*,")
_QUOTE, _BACKSLASH, _OPENS_LIST, _CLOSES_LIST = b'"\\[]'
_OPENING = b"[{"


Spans: TypeAlias = list[tuple[int, int]]  # where each begins and ends


@dataclass(frozen=True, slots=True)
class Decoded:
    """`outside`: the parts of the bytes that are not in lists which are values of the document, an object."""

    document: Any
    outside: Spans


def is_short_of_memory(error: orjson.JSONDecodeError) -> bool:
    """orjson has no error of its own for it."""
    return error.msg.startswith("Not enough memory")


class TooManyParts(Exception):
    """More than MOST_PARTS strings, lists and objects in a large document."""


class _LeftWhole(Exception):
    """It is no JSON, or no object."""


async def decode(raw: bytes) -> Decoded:
    """The document in `raw`. Raises orjson.JSONDecodeError and TooManyParts."""
    if len(raw) <= WHOLE_BYTES:
        return _whole(raw)
    parts = _Parts(raw)
    try:
        for _ in parts.decoded():
            await asyncio.sleep(0)
        return Decoded(parts.document(), parts.outside)
    except (_LeftWhole, orjson.JSONDecodeError):
        return _whole(raw)  # its error tells the place


def _whole(raw: bytes) -> Decoded:
    return Decoded(orjson.loads(raw), [(0, len(raw))])


class _Parts:
    """A document taken apart into the lists that are values of its object, and all the rest.

    With the rest, the place of a list is taken by one that holds its number.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._lists: list[list[Any]] = []
        self.outside: Spans = [(0, len(raw))]
        self._depth = 0
        self._begin: int | None = None  # of what is not decoded yet of the list that is being read
        self._cut = False  # whether that list was cut at a comma

    def decoded(self) -> Iterator[None]:
        """Decodes the lists, a turn for each step. Raises _LeftWhole, TooManyParts and orjson.JSONDecodeError."""
        raw, position, steps = self._raw, 0, 0
        while position < len(raw):
            limit = position + PIECE_BYTES
            found = _STRUCTURE.search(raw, position, limit)
            if found is None:  # numbers, most likely
                self._decode_up_to(raw.rfind(b",", position, limit), above=position)
                position = limit
                yield
                continue
            position = self._pass(found.start())
            comma = _COMMA.match(raw, position) if self._is_long_enough(position) else None
            if comma is not None:
                self._decode_up_to(comma.end() - 1, above=position)
                position = comma.end()
                yield
            steps += 1
            if steps % STEPS == 0:
                yield
            if steps == MOST_PARTS:
                raise TooManyParts

    def document(self) -> Any:
        """All put together again."""
        *before, (start, end) = self.outside
        numbered = [self._raw[slice(*span)] + b"[%d]" % number for number, span in enumerate(before)]
        document = orjson.loads(b"".join([*numbered, self._raw[start:end]]))
        if not isinstance(document, dict):
            raise _LeftWhole
        lists = self._lists
        return {key: lists[value[0]] if isinstance(value, list) else value for key, value in document.items()}

    def _is_long_enough(self, position: int) -> bool:
        return self._depth == 2 and self._begin is not None and position - self._begin >= PIECE_BYTES

    def _pass(self, at: int) -> int:
        """The position behind the bracket or the string that begins at `at`."""
        character = self._raw[at]
        if character == _QUOTE:
            return self._end_of_string(at)
        if character in _OPENING:
            self._depth += 1
            if self._depth == 2 and character == _OPENS_LIST:
                self.outside[-1] = (self.outside[-1][0], at)
                self._lists.append([])
                self._begin, self._cut = at + 1, False
            return at + 1
        self._depth -= 1
        if self._depth == 1 and self._begin is not None:
            if character != _CLOSES_LIST:
                raise _LeftWhole
            self._decode(at)
            self._begin = None
            self.outside.append((at + 1, len(self._raw)))
        return at + 1

    def _end_of_string(self, at: int) -> int:
        end = self._raw.find(b'"', at + 1)
        if end > 0 and self._raw[end - 1] != _BACKSLASH:
            return end + 1
        found = _STRING.match(self._raw, at)
        if found is None:
            raise _LeftWhole
        return found.end()

    def _decode_up_to(self, comma: int, *, above: int) -> None:
        """Decodes what stands before the `comma`, if that is one of the list's own and not before `above`."""
        if self._depth == 2 and self._begin is not None and comma >= above:
            self._cut = True
            self._decode(comma)
            self._begin = comma + 1

    def _decode(self, end: int) -> None:
        piece = memoryview(self._raw)[self._begin : end]
        values = orjson.loads(b"".join((b"[[", piece, b"]]")))[0]  # as deep as in the document: orjson has a limit
        if self._cut and not values:
            raise _LeftWhole  # nothing beside a comma
        self._lists[-1] += values
