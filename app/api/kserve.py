"""Documents KServe V2's routes in /openapi.json. These handlers are never called: `app.gate` answers before."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from app.api.schemas import Open

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
]  # fmt: skip
BINARY = "With `Inference-Header-Content-Length`, tensors may follow the JSON as bytes (the binary tensor extension)"


class KServeError(BaseModel):
    error: str


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any length")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferInput(Open):
    name: str
    datatype: Datatype
    shape: list[int]
    data: list[Any] | None = Field(None, description="Nested or flat, row by row.")
    parameters: dict[str, Any] | None = Field(None, description="`binary_data_size`: so many bytes follow the JSON.")


class InferOutput(Open):
    name: str
    parameters: dict[str, Any] | None = Field(None, description="`binary_data: true`: it follows the JSON as bytes.")


class InferBody(Open):
    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[InferInput]
    outputs: list[InferOutput] | None = Field(None, description="Left out: all.")


ROUTES: dict[str, tuple[str, type[BaseModel] | None]] = {
    "/v2": ("What this server is", None),
    "/v2/models/{name}": ("What a model takes and gives", ModelMetadata),
    "/v2/models/{name}/ready": ("200 while the model's server can serve it; loads nothing", None),
}
INFER = "/v2/models/{name}/infer"


def kserve_router() -> APIRouter:
    """Each model's routes also exist with `/versions/{version}` behind its name."""
    router = APIRouter(tags=["KServe V2"])
    errors: dict[int | str, dict[str, Any]] = {
        400: {"model": KServeError, "description": "Malformed, or other tensors than the model takes"},
        404: {"model": KServeError, "description": "Unknown model or version"},
        429: {"model": KServeError, "description": "More than the model's server takes: a quota, or a large message"},
        502: {"model": KServeError, "description": "The model's server failed"},
        503: {"model": KServeError, "description": "The model's server cannot be reached; see Retry-After"},
    }
    for path, (summary, answer) in ROUTES.items():
        router.add_api_route(
            path, _documented, summary=summary, response_model=answer, responses=errors, operation_id=_id(path)
        )
    router.add_api_route(
        INFER,
        _documented_infer,
        methods=["POST"],
        summary="Tensors in, tensors out",
        description=BINARY,
        response_class=Response,
        responses=errors,
        operation_id=_id(INFER),
    )
    return router


def _id(path: str) -> str:
    return path.strip("/").replace("/", "_").replace("{", "").replace("}", "")


async def _documented() -> None:
    raise AssertionError("the gate answers this path")


async def _documented_infer(body: InferBody) -> None:
    raise AssertionError("the gate answers this path")
