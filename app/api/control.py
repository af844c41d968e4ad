"""POST /v1/model/load and /v1/model/unload."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter

from app.api.schemas import ControlRequest, ErrorAnswer, ModelState
from app.deps import State
from models.types import ModelStatus

router = APIRouter(
    prefix="/v1/model",
    tags=["control"],
    responses={400: {"model": ErrorAnswer}, 404: {"model": ErrorAnswer}, 503: {"model": ErrorAnswer}},
)


@router.post("/load", response_model=ModelState)
async def load(request: ControlRequest, state: State) -> Any:
    """Brings a model onto the device, as a request for it would."""
    spec = state.manager.catalog.resolve(request.model)
    return _shown(await state.manager.load(spec, wait=request.wait))


@router.post("/unload", response_model=ModelState)
async def unload(request: ControlRequest, state: State) -> Any:
    """Takes a model off the device after its running answers have ended."""
    spec = state.manager.catalog.resolve(request.model)
    return _shown(await state.manager.unload(spec, wait=request.wait))


def _shown(status: ModelStatus) -> dict[str, Any]:
    return {"object": "model.state"} | dataclasses.asdict(status)
