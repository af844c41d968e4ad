"""A KServe V2 inference request: read from JSON with or without binary tensors behind it, and checked.

Everything here is plain computation, to be done in a thread where the body is large.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest, TooLarge
from app.kserve.number_lists import NumberLists, take_out
from app.request_body import parse_document
from models.types import ModelSpec, Tensor
from utils.kserve import DATATYPES, TensorError, check_raw, from_json

BINARY_SIZE, BINARY, BINARY_ALL = "binary_data_size", "binary_data", "binary_data_output"
SHARED_MEMORY = "shared_memory_region"
SHARED = b"shared_memory"
ESCAPED = re.compile(rb"\\u00[567]")  # its letters
WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's, by Content-Encoding
STEP_BYTES = 1 << 20
MAX_DIMENSIONS = 32
MAX_LENGTH = (1 << 63) - 1
MAX_NAME = 1024


@dataclass(frozen=True, slots=True)
class Input:
    tensor: Tensor
    raw: bytes | memoryview  # as the binary extension has it, wherever it came from
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """`parameters` are the client's for the server, without those that say in which form tensors travel."""

    id: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    parameters: Mapping[str, Any]
    binary_outputs: Mapping[str, bool]  # whether each is asked for in binary form …
    others_binary: bool  # … and those of which nothing was said

    def wants_binary(self, output: str) -> bool:
        return self.binary_outputs.get(output, self.others_binary)


def unpacked(body: bytes, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """What `body` holds, in parts of at most STEP_BYTES, so that they can be counted before there are many.

    Raises InvalidRequest for what is not compressed so, TooLarge before more than `max_bytes` are there.
    """
    bits = WINDOW_BITS.get(encoding)
    if bits is None:
        raise InvalidRequest(f"Content-Encoding {encoding[:40]!r} is not known here; gzip and deflate are.")
    unpacking, size, source = zlib.decompressobj(bits), 0, memoryview(body)
    for begin in range(0, len(body), STEP_BYTES):
        left: bytes | memoryview = source[begin : begin + STEP_BYTES]
        while left:
            try:
                part = unpacking.decompress(left, STEP_BYTES)
            except zlib.error as error:
                what = f"The body is not compressed as Content-Encoding {encoding} says"
                raise InvalidRequest(f"{what}: {error}.") from None
            size += len(part)
            if size > max_bytes:
                raise TooLarge(f"The request's body is larger than {max_bytes} bytes once unpacked (max_body_bytes).")
            if part:
                yield part
            left = unpacking.unconsumed_tail
        if unpacking.unused_data or (unpacking.eof and begin + STEP_BYTES < len(body)):
            # The model's server might read it as more of the body, which then nobody had checked.
            raise InvalidRequest("There are bytes behind the end of the compressed body.")
    if not unpacking.eof:
        raise InvalidRequest("The compressed body ends too early.")


def read(body: bytes, header_bytes: int | None, spec: ModelSpec) -> InferRequest:
    """The request in `body`, which is one for `spec`. Raises InvalidRequest."""
    request = parse(body, header_bytes)
    check(request, spec)
    return request


def parse(body: bytes, header_bytes: int | None) -> InferRequest:
    """`header_bytes`: the length of the JSON at the body's beginning; None: all of it. Raises InvalidRequest."""
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        raise InvalidRequest(f"Inference-Header-Content-Length is {header_bytes}, and the body has {len(body)} bytes.")
    head = body if header_bytes is None else body[:header_bytes]
    behind = memoryview(body)[len(head) :]
    lists = take_out(head)
    request = _request(_document(lists), lists, behind)
    if lists.spans:  # of no tensor: whatever they are, they stand for themselves
        request = _request(parse_document(head), NumberLists(head, head), behind)
    return request


def _document(lists: NumberLists) -> dict[str, Any]:
    """What is left without the lists."""
    try:
        document = parse_document(lists.rest)
    except InvalidRequest:
        parse_document(lists.head)  # its error tells the place
        raise
    if SHARED in lists.rest or ESCAPED.search(lists.rest):
        _check_names_once(lists.rest)
    return document


def _request(document: dict[str, Any], lists: NumberLists, behind: memoryview) -> InferRequest:
    """`lists`: those taken out of the document, of which the tensors take theirs away."""
    parameters = _object(document, "parameters", "`parameters`")
    outputs = _outputs(_list(document, "outputs"))
    inputs, left = _inputs(_list(document, "inputs"), lists, behind)
    if left:
        raise InvalidRequest(f"The body has {left} bytes behind its last tensor (see binary_data_size of the inputs).")
    given_id = document.get("id", "")
    if not isinstance(given_id, str) or len(given_id) > MAX_NAME:
        raise InvalidRequest(f"`id` must be a string of at most {MAX_NAME} characters.", param="id")
    return InferRequest(
        id=given_id,
        inputs=inputs,
        outputs=outputs,
        parameters={name: value for name, value in parameters.items() if name != BINARY_ALL},
        binary_outputs={
            output.name: output.parameters[BINARY] is True for output in outputs if BINARY in output.parameters
        },
        others_binary=parameters.get(BINARY_ALL) is True,
    )


def _check_names_once(head: bytes) -> None:
    """Triton takes the first of two members of one name, and we the last: what it gets is to be what was checked."""

    def members(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise InvalidRequest("The body names a field of an object twice.")

    try:
        json.loads(head, object_pairs_hook=members)
    except (RecursionError, ValueError) as error:
        raise InvalidRequest(f"The body is nested too deeply, or a number in it is too long: {error}.") from None


def check(request: InferRequest, spec: ModelSpec) -> None:
    """Whether names, datatypes and shapes are those that the model's server told. Raises InvalidRequest.

    Which inputs may be left out it does not tell, so that missing ones are for it to refuse.
    """
    signature = spec.signature
    if signature is None:
        return
    if signature.inputs:
        known = {tensor.name: tensor for tensor in signature.inputs}
        for at, given in enumerate(request.inputs):
            _check_input(given.tensor, known, f"inputs[{at}]", spec.id)
    if signature.outputs:
        names = [tensor.name for tensor in signature.outputs]
        for at, output in enumerate(request.outputs):
            if output.name not in names:
                where = f"outputs[{at}]"
                raise InvalidRequest(
                    f"`{where}`: '{spec.id}' has no output '{output.name}'; it gives {', '.join(names)}.", param=where
                )


def _check_input(given: Tensor, known: Mapping[str, Tensor], where: str, model_id: str) -> None:
    tensor = known.get(given.name)
    if tensor is None:
        text = f"`{where}`: '{model_id}' has no input '{given.name}'; it takes {', '.join(known)}."
        raise InvalidRequest(text, param=where)
    name = f"`{where}` '{given.name}'"
    if given.datatype != tensor.datatype:
        text = f"{name}: datatype {given.datatype} is given, and '{model_id}' takes {tensor.datatype}."
        raise InvalidRequest(text, param=f"{where}.datatype")
    fits = len(given.shape) == len(tensor.shape) and all(
        wanted in (-1, length) for wanted, length in zip(tensor.shape, given.shape, strict=True)
    )
    if not fits:
        text = f"{name}: shape {list(given.shape)} is given, and '{model_id}' takes {list(tensor.shape)} (-1: any)."
        raise InvalidRequest(text, param=f"{where}.shape")


def _inputs(entries: Sequence[Any], lists: NumberLists, behind: memoryview) -> tuple[tuple[Input, ...], int]:
    """The inputs, and how many bytes of `behind` belong to none of them."""
    inputs: dict[str, Input] = {}
    at = 0
    if not entries:
        raise InvalidRequest("`inputs` is missing or empty; a list of tensors is needed.", param="inputs")
    for index, entry in enumerate(entries):
        where = f"inputs[{index}]"
        tensor, parameters = _tensor(entry, where)
        name = f"`{where}` '{tensor.name}'"
        if tensor.name in inputs:
            raise InvalidRequest(f"{name} is given twice.", param=where)
        try:
            size = parameters.pop(BINARY_SIZE, None)
            if size is None:
                raw: bytes | memoryview = _from_data(entry, tensor, lists)
            else:
                raw = _slice(behind, at, size)
                at += len(raw)
                check_raw(tensor.datatype, tensor.shape, raw)
        except TensorError as error:
            raise InvalidRequest(f"{name} {error}.", param=where) from None
        inputs[tensor.name] = Input(tensor, raw, parameters)
    return tuple(inputs.values()), len(behind) - at


def _from_data(entry: Mapping[str, Any], tensor: Tensor, lists: NumberLists) -> bytes:
    data = entry.get("data")
    raw = lists.take(data, tensor)
    if raw is not None:
        return raw
    if not isinstance(data, list):
        raise TensorError("has neither a list in `data` nor `binary_data_size` in its parameters")
    return from_json(tensor.datatype, tensor.shape, data)


def _slice(behind: memoryview, at: int, size: Any) -> memoryview:
    if type(size) is not int or size < 0:
        raise TensorError("has a `binary_data_size` that is no count of bytes")
    if at + size > len(behind):
        raise TensorError(f"should have {size} bytes behind the JSON, of which {len(behind) - at} are there")
    return behind[at : at + size]


def _tensor(entry: Any, where: str) -> tuple[Tensor, dict[str, Any]]:
    name = _name(entry, where)
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype not in DATATYPES:
        text = f"`{where}` '{name}': `datatype` must be one of {', '.join(DATATYPES)}."
        raise InvalidRequest(text, param=f"{where}.datatype")
    lengths_ok = isinstance(shape, list) and all(type(one) is int and 0 <= one <= MAX_LENGTH for one in shape)
    if not lengths_ok or len(shape) > MAX_DIMENSIONS:
        text = f"`{where}` '{name}': `shape` must be a list of at most {MAX_DIMENSIONS} lengths."
        raise InvalidRequest(text, param=f"{where}.shape")
    parameters = dict(_object(entry, "parameters", f"`{where}.parameters`"))
    if SHARED_MEMORY in parameters:
        text = f"`{where}` '{name}': shared memory does not reach the model's server from here; send the tensor itself."
        raise InvalidRequest(text, param=f"{where}.parameters")
    return Tensor(name, datatype, tuple(shape)), parameters


def _outputs(entries: Sequence[Any]) -> tuple[Output, ...]:
    outputs: dict[str, Output] = {}
    for at, entry in enumerate(entries):
        output = _output(entry, at)
        if output.name in outputs:
            raise InvalidRequest(f"`outputs[{at}]` '{output.name}' is asked for twice.", param=f"outputs[{at}]")
        outputs[output.name] = output
    return tuple(outputs.values())


def _output(entry: Any, at: int) -> Output:
    where = f"outputs[{at}]"
    output = Output(_name(entry, where), _object(entry, "parameters", f"`{where}.parameters`"))
    if SHARED_MEMORY in output.parameters:
        text = f"`{where}` '{output.name}': shared memory of the model's server does not reach you through here."
        raise InvalidRequest(text, param=f"{where}.parameters")
    return output


def _name(entry: Any, where: str) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise InvalidRequest(f"`{where}` must be an object with a `name`.", param=where)
    return name


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    found = document.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise InvalidRequest(f"`{name}` must be a list.", param=name)
    return found


def _object(holder: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    found = holder.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequest(f"{where} must be an object.", param=where.strip("`"))
    return found
