"""GET /health, /health/live, /health/ready: always open, so they tell counts and states but no names."""

from __future__ import annotations

import collections
import time
from typing import Any

from fastapi import APIRouter, Response

from app.api.schemas import Health
from app.deps import State
from models.errors import ShuttingDown
from models.types import Availability

router = APIRouter(tags=["health"])
SCAN_RETRY_S = 2.0


@router.api_route("/health", methods=["GET", "HEAD"], response_model=Health)
async def health(state: State) -> Any:
    """200 as long as this process serves, with what it is doing."""
    manager = state.manager
    memory = manager.memory()
    statuses = manager.statuses()
    specs = manager.catalog.specs()
    return {
        "status": state.phase,
        "uptime_s": round(time.monotonic() - state.started_s, 3),
        "device": state.device,
        "engines": {name: dict(factory.state()) for name, factory in manager.factories.items()}
        | {name: {"state": "unavailable", "error": why} for name, why in state.engine_errors.items()},
        "models": {
            "servable": len(statuses),
            "not_servable": sum(spec.availability is not Availability.AVAILABLE for spec in specs),
            "by_state": dict(collections.Counter(str(status.state) for status in statuses)),
        },
        "requests": {
            "running": sum(status.running for status in statuses),
            "queued": sum(status.queued for status in statuses),
        },
        "memory": {"budget_bytes": memory.budget_bytes, "charged_bytes": memory.charged_bytes},
        "config_error": state.config_error,
        "scan_error": state.scan_error,
    }


@router.api_route("/health/live", methods=["GET", "HEAD"], response_model=Health)
async def live(state: State) -> Any:
    """200 as long as this process answers."""
    return {"status": state.phase}


@router.api_route("/health/ready", methods=["GET", "HEAD"], response_model=Health)
async def ready(state: State, response: Response) -> Any:
    """200 when requests are taken; 503 before the models folder was read and from the TERM signal on."""
    if state.phase == "stopping":
        raise ShuttingDown("Roundhouse is shutting down.", retry_after_s=SCAN_RETRY_S)
    if state.phase == "starting":
        response.status_code = 503
        response.headers["retry-after"] = str(int(SCAN_RETRY_S))
    return {"status": state.phase}
