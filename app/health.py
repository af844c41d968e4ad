"""GET /health, /health/live, /health/ready: always open, so they tell counts and states but no names.

Plain functions and not FastAPI routes: they answer before FastAPI is imported, and whatever becomes of it.
"""

from __future__ import annotations

import collections
import time
from typing import Any

import orjson

from app.errors import Header, Rendered, RequestError, render
from app.state import AppState
from models.errors import ShuttingDown
from models.types import Availability

PATHS = frozenset({"/health", "/health/live", "/health/ready"})
RETRY_S = 2.0


class Starting(RequestError):
    status, type, code = 503, "server_error", "starting"


def answer(state: AppState, path: str, request_id: str) -> Rendered:
    """/health: 200 with all there is to tell; /health/live: 200; /health/ready: 503 while requests are not taken."""
    if path == "/health/ready" and state.phase != "ready":
        return render(_not_ready(state), "openai", request_id)
    body = orjson.dumps(overview(state) if path == "/health" else {"status": state.phase}, default=str)
    headers: list[Header] = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Rendered(200, [*headers, (b"cache-control", b"no-store")], body)


def _not_ready(state: AppState) -> ShuttingDown | Starting:
    if state.phase == "stopping":
        return ShuttingDown("Roundhouse is shutting down.", retry_after_s=RETRY_S)
    return Starting("Roundhouse is starting: the models folder is being read.", retry_after_s=RETRY_S)


def overview(state: AppState) -> dict[str, Any]:
    manager = state.manager
    memory, statuses = manager.memory(), manager.statuses()
    engines = {name: dict(factory.state()) for name, factory in manager.factories.items()}
    engines |= {name: {"state": "unavailable", "error": why} for name, why in state.engine_errors.items()}
    specs = manager.catalog.specs()
    return {
        "status": state.phase,
        "uptime_s": round(time.monotonic() - state.started_s, 3),
        "device": state.device,
        "engines": engines,
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
