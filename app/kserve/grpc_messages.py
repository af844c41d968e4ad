"""KServe V2 between JSON, as clients have it here, and gRPC, as servers elsewhere have it. Plain computation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from app.errors import Header, InvalidRequest
from app.foreign import NoAnswer
from app.kserve.infer_request import BINARY, BINARY_SIZE, InferRequest
from utils.kserve import SLICE, TensorError, from_values, to_json
from utils.kserve_grpc import service_pb2

INFERENCE_HEADER = b"inference-header-content-length"
UNSIGNED = "priority"  # the one parameter that Triton wants so
INT64 = range(-(1 << 63), 1 << 63)
# The field of a tensor's contents that has its values, where its server does not give them as raw.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def encode(request: InferRequest, name: str, version: str) -> bytes:
    """A ModelInferRequest for the server's model `name`. Raises InvalidRequest."""
    message = service_pb2.ModelInferRequest(model_name=name, model_version=version, id=request.id)
    _set_parameters(message.parameters, request.parameters, "parameters")
    for at, given in enumerate(request.inputs):
        tensor = given.tensor
        one = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _set_parameters(one.parameters, given.parameters, f"inputs[{at}].parameters")
        message.raw_input_contents.append(bytes(given.raw))
    for at, output in enumerate(request.outputs):
        asked = message.outputs.add(name=output.name)
        passed = {name: value for name, value in output.parameters.items() if name != BINARY}
        _set_parameters(asked.parameters, passed, f"outputs[{at}].parameters")
    encoded: bytes = message.SerializeToString()
    return encoded


def decode(raw: bytes, request: InferRequest, model_id: str) -> tuple[list[Header], list[bytes]]:
    """The answer for the client: headers, and the parts of its body. Raises NoAnswer and InvalidRequest."""
    try:
        message = service_pb2.ModelInferResponse.FromString(raw)
        outputs, behind = [], []
        for at, output in enumerate(message.outputs):
            tensor = _raw_of(message, at)
            entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
            parameters = _parameters(output.parameters)
            if request.wants_binary(output.name):
                behind.append(tensor)
                parameters[BINARY_SIZE] = len(tensor)
            else:
                entry["data"] = _as_json(output, tensor)
            outputs.append(entry | ({"parameters": parameters} if parameters else {}))
    except (DecodeError, IndexError, KeyError, ValueError, OverflowError) as error:
        what = "gave an answer that is no tensors"
        raise NoAnswer(f"The server of '{model_id}' {what}", f"it {what}", f": {error}") from None
    document: dict[str, Any] = {"id": message.id} if message.id else {}
    document |= {"model_name": model_id, "model_version": message.model_version}
    if message.parameters:
        document["parameters"] = _parameters(message.parameters)
    head = orjson.dumps(document | {"outputs": outputs})
    return _headers(head, behind), [head, *behind]


def _headers(head: bytes, behind: list[bytes]) -> list[Header]:
    length = len(head) + sum(len(tensor) for tensor in behind)
    headers = [(b"content-length", b"%d" % length)]
    if not behind:
        return [*headers, (b"content-type", b"application/json")]
    return [*headers, (b"content-type", b"application/octet-stream"), (INFERENCE_HEADER, b"%d" % len(head))]


def _raw_of(message: Any, at: int) -> bytes:
    """Raises KeyError and IndexError for what is not there."""
    if message.raw_output_contents:
        raw: bytes = message.raw_output_contents[at]
        return raw
    output = message.outputs[at]
    return from_values(output.datatype, getattr(output.contents, CONTENTS[output.datatype]))


def _as_json(output: Any, raw: bytes) -> Any:
    """For orjson. It writes numbers with the interpreter's lock held: by slices, other threads get their turn."""
    try:
        values = to_json(output.datatype, raw)
    except TensorError as error:
        raise InvalidRequest(f"The output '{output.name}' {error}.", param="outputs") from None
    if isinstance(values, list):
        return values
    slices = (values[begin : begin + SLICE] for begin in range(0, len(values), SLICE))
    parts = (orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for part in slices)
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")


def _set_parameters(fields: Any, parameters: Mapping[str, Any], where: str) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            fields[name].bool_param = value
        elif isinstance(value, int) and name == UNSIGNED and value >= 0:
            fields[name].uint64_param = value
        elif isinstance(value, int) and value in INT64:
            fields[name].int64_param = value
        elif isinstance(value, float):
            fields[name].double_param = value
        elif isinstance(value, str):
            fields[name].string_param = value
        else:
            text = f"`{where}`: {name!r} must be a string, a number or a boolean."
            raise InvalidRequest(text, param=f"{where}.{name}")


def _parameters(fields: Any) -> dict[str, Any]:
    return {
        name: getattr(field, kind) for name, field in fields.items() if (kind := field.WhichOneof("parameter_choice"))
    }
