"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from fastapi import APIRouter

from app.api.schemas import ModelDetail, ModelList
from app.deps import State
from app.routes import routes_of
from app.state import AppState
from models.errors import UnknownModel
from models.types import ModelSpec, ModelStatus, Task
from utils.openai_compat import list_object, model_object

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList)
async def list_models(state: State, all: bool = False) -> Any:
    """The models that can be served; with `all=true` also those that cannot (see each one's `availability`)."""
    manager = state.manager
    statuses = {status.id: status for status in manager.statuses()}
    specs = [spec for spec in manager.catalog.specs() if all or manager.servable.refusal(spec) is None]
    return list_object([_entry(spec, _status_of(spec, statuses, state), state) for spec in specs])


@router.get("/v1/models/{model_id:path}", response_model=ModelDetail)
async def get_model(model_id: str, state: State) -> Any:
    """One model, by id, alias or last part of its id, with the reasons for how it was judged and would be started."""
    manager = state.manager
    spec = manager.catalog.resolve(model_id)
    status = _status_of(spec, {status.id: status for status in manager.statuses()}, state)
    refusal = manager.servable.refusal(spec)
    return (
        (dataclasses.asdict(status) if status else {})
        | _entry(spec, status, state)
        | {
            "reasons": [*spec.reasons, *await asyncio.to_thread(manager.servable.reasons, spec)],
            "refusal": refusal,
            "engine": spec.engine,
            "architecture": spec.architecture,
            "model_type": spec.model_type,
            "weights_bytes": spec.weights_bytes,
            "dtype": spec.dtype,
            "quantization": spec.quantization,
            "chat_template": spec.chat_template,
            "routes": [] if refusal else routes_of(spec),
        }
    )


def _status_of(spec: ModelSpec, statuses: dict[str, ModelStatus], state: AppState) -> ModelStatus | None:
    """An adapter has its base's status."""
    if spec.task is not Task.ADAPTER:
        return statuses.get(spec.id)
    try:
        return statuses.get(state.manager.catalog.base_of(spec).id)
    except UnknownModel:
        return None


def _parent(spec: ModelSpec, state: AppState) -> str | None:
    """The id of an adapter's base, or as the adapter names it where there is none here."""
    if spec.task is not Task.ADAPTER:
        return spec.parent
    try:
        return state.manager.catalog.base_of(spec).id
    except UnknownModel:
        return spec.parent


def _entry(spec: ModelSpec, status: ModelStatus | None, state: AppState) -> dict[str, Any]:
    return model_object(
        spec.id,
        spec.created_s,
        task=spec.task,
        state=status.state if status else None,
        availability=spec.availability,
        aliases=list(spec.aliases),
        parent=_parent(spec, state),
        max_model_len=spec.overrides.max_model_len or spec.max_model_len,
        served_elsewhere=state.manager.servable.is_remote(spec),
    )
