"""Reads `model` and `stream` out of a JSON body, and puts another model name in, touching nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from app.errors import InvalidRequest
from models.errors import Busy, RoundhouseError
from utils import json_pieces
from utils.json_pieces import Spans

# Inside a JSON string the quotes would be escaped, so a match is a key (or a value that is followed by no colon). The
# look behind stands behind: at the beginning it would keep `re` from searching for the literal, 40 times as fast.
MODEL_MEMBER = re.compile(rb'"model"(?<!\\"model")\s*:\s*("(?:[^"\\]|\\.)*")')
MODEL_NAME_MAX = 1024
UNCOUNTED_BYTES = 1 << 20  # parsed, a body takes up to thirty times its size: too little to bother about up to here
MAX_CONTAINERS = 500_000  # a request of this many is none that a model could answer
MAX_COMMAS = 4_000_000
MAX_STRINGS = 500_000  # that are looked at to leave them out of the count: 0.3 s
MEMORY_RETRY_S = 1.0
STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # one without an end, too: else it takes n² steps


@dataclass(frozen=True, slots=True)
class RequestBody:
    """`model` is None where the client's protocol has no such field. `outside`: where it may stand, None: anywhere."""

    raw: bytes
    model: str | None
    stream: bool
    outside: Spans | None = None

    def naming(self, name: str) -> RequestBody:
        """The body with the `model` that it lacks; at its end, where it holds though there is a null before."""
        rest = self.raw.rstrip()[:-1].rstrip()
        comma = b"" if rest.endswith(b"{") else b","
        return RequestBody(b"".join((rest, comma, b'"model":', orjson.dumps(name), b"}")), name, self.stream)

    def with_model(self, name: str) -> bytes:
        """The body with `model` set to `name`, every other byte as it came where that is possible."""
        if self.model is None or name == self.model:
            return self.raw
        outside = self.outside or [(0, len(self.raw))]
        found = [match for span in outside for match in MODEL_MEMBER.finditer(self.raw, *span)]
        if len(found) == 1 and orjson.loads(found[0].group(1)) == self.model:
            begin, end = found[0].span(1)
            given = orjson.dumps(name)
            rest = b"[]".join(self.raw[max(start, end) : stop] for start, stop in outside if stop > end)
            if _is_end_of_object(given + rest, name):  # else that key lies deeper, and ours is spelled with \u
                raw = memoryview(self.raw)
                return b"".join((raw[:begin], given, raw[end:]))
        return self._reserialised(name)

    def _reserialised(self, name: str) -> bytes:
        """For more than one `model` in the document. The standard library keeps long integers, orjson does not."""
        try:
            document = json.loads(self.raw)
        except (RecursionError, ValueError) as error:
            raise InvalidRequest(f"The body is nested too deeply, or a number in it is too long: {error}.") from None
        document["model"] = name
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _is_end_of_object(rest: bytes, model: str) -> bool:
    """Whether `rest`, from the value of a `model` on, lacks just the beginning of one object, whose model that is."""
    try:
        return bool(orjson.loads(b'{"model":' + rest)["model"] == model)
    except orjson.JSONDecodeError:
        return False


def parse_document(raw: bytes, what: str = "body") -> dict[str, Any]:
    """The JSON object in `raw`, the request's body or another `what`.

    Raises InvalidRequest that says what is wrong, and Busy for want of memory.
    """
    if not raw:
        raise InvalidRequest(f"There is no {what}; a JSON object is needed.")
    if len(raw) > UNCOUNTED_BYTES:
        _check_size_when_parsed(raw, what)
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _not_json(error, what) from None
    return _object(document, what)


async def read_document(raw: bytes) -> tuple[dict[str, Any], Spans | None]:
    """As `parse_document`; while a large body is decoded, other requests get their turn. With what is outside lists."""
    if len(raw) <= UNCOUNTED_BYTES:
        return parse_document(raw), None
    containers = commas = 0
    for start in range(0, len(raw), UNCOUNTED_BYTES):
        end = start + UNCOUNTED_BYTES
        containers += raw.count(b"[", start, end) + raw.count(b"{", start, end)
        commas += raw.count(b",", start, end)
        await asyncio.sleep(0)
    if containers > MAX_CONTAINERS or commas > MAX_COMMAS:
        _check_size_when_parsed(raw, "body")
    try:
        decoded = await json_pieces.decode(raw)
        return _object(decoded.document, "body"), decoded.outside
    except orjson.JSONDecodeError as error:
        raise _not_json(error, "body") from None
    except json_pieces.TooManyParts:
        raise InvalidRequest(f"The body holds more than {json_pieces.MOST_PARTS} strings, lists and objects.") from None


def _not_json(error: orjson.JSONDecodeError, what: str) -> RoundhouseError:
    if json_pieces.is_short_of_memory(error):
        return Busy("There is no memory to read this request now; try again.", retry_after_s=MEMORY_RETRY_S)
    return InvalidRequest(
        f"The {what} is not valid JSON: {error}. (NaN, Infinity and bytes that are not UTF-8 are not JSON either; "
        "compressed bodies are not read.)"
    )


def _object(document: Any, what: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidRequest(f"The {what} must be a JSON object, not {_json_kind(document)}.")
    return document


def parse_body(
    raw: bytes, document: dict[str, Any], *, outside: Spans | None = None, model_needed: bool = True
) -> RequestBody:
    """What of `document`, the object in `raw`, matters here. Raises InvalidRequest naming `model`."""
    model = document.get("model")
    if model is None and not model_needed:
        return RequestBody(raw, None, document.get("stream") is True, outside)
    if not isinstance(model, str) or not model:
        problem = "is missing" if model is None else "must be a string that is not empty"
        raise InvalidRequest(f"`model` {problem}; GET /v1/models lists the models.", param="model")
    if len(model) > MODEL_NAME_MAX:
        raise InvalidRequest(f"`model` is longer than {MODEL_NAME_MAX} characters.", param="model")
    return RequestBody(raw, model, document.get("stream") is True, outside)


def _check_size_when_parsed(raw: bytes, what: str) -> None:
    """64 MiB of `[],` would take 2 GB of memory, and the event loop for 5 s; a large text or image takes neither."""
    limit = _exceeded(raw)
    if limit and raw.count(b'"') - raw.count(b'\\"') <= 2 * MAX_STRINGS:
        limit = _exceeded(STRINGS.sub(b"", raw))  # what stands in texts, such as code or tables, does not count
    if limit:
        raise InvalidRequest(f"The {what} holds more than {limit}.")


def _exceeded(raw: bytes) -> str | None:
    if raw.count(b"[") + raw.count(b"{") > MAX_CONTAINERS:
        return f"{MAX_CONTAINERS} lists and objects"
    return f"{MAX_COMMAS} values" if raw.count(b",") > MAX_COMMAS else None


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "something else")
