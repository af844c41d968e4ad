"""GET /health, /health/live, /health/ready: always open; names are told only to those who may see them.

Plain functions and not FastAPI routes: they answer before FastAPI is imported, and whatever becomes of it.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.errors import Header, Rendered, RequestError, protocol_of, render
from app.state import AppState
from models.errors import ShuttingDown
from models.types import Availability, ModelStatus, State

LIVE, READY, SUMMARY = "/health/live", "/health/ready", "/health"
KSERVE_LIVE, KSERVE_READY = "/v2/health/live", "/v2/health/ready"  # the same for clients of KServe V2
PATHS = frozenset({LIVE, READY, SUMMARY, KSERVE_LIVE, KSERVE_READY})
RETRY_S = 2.0
PRIVATE = frozenset({"host", "error", "environment_detail"})  # of what engines tell


class Starting(RequestError):
    status, type, code = 503, "server_error", "starting"


class NotReady(RequestError):
    """The process lives and its scheduler does not."""

    status, type, code = 503, "server_error", "not_ready"


def answer(state: AppState, path: str, request_id: str, *, named: bool) -> Rendered:
    """/health: 200 with all there is to tell; /health/live: 200; /health/ready: 503 while requests cannot be served.

    `named`: the caller may see the names of models.
    """
    if path in (READY, KSERVE_READY) and (refusal := _not_ready(state, named=named)) is not None:
        return render(refusal, protocol_of(path), request_id)
    body = orjson.dumps(overview(state, named=named) if path == SUMMARY else {"status": state.phase}, default=str)
    headers: list[Header] = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Rendered(200, [*headers, (b"cache-control", b"no-store")], body)


def _not_ready(state: AppState, *, named: bool) -> RequestError | ShuttingDown | None:
    if state.phase == "stopping":
        return ShuttingDown("Roundhouse is shutting down.", retry_after_s=RETRY_S)
    if state.phase == "starting":
        return Starting("Roundhouse is starting: the models folder is being read.", retry_after_s=RETRY_S)
    trouble = _trouble(state, named=named)
    return NotReady(f"Requests cannot be served now. {trouble}", retry_after_s=RETRY_S) if trouble else None


def _trouble(state: AppState, *, named: bool) -> str | None:
    return _cause(state.manager.trouble(), named=named)


def _cause(cause: str | None, *, named: bool) -> str | None:
    """It may name models and folders, and show lines of the configuration."""
    return cause if named or cause is None else "The reason is told to callers with a key, and in the log."


def overview(state: AppState, *, named: bool) -> dict[str, Any]:
    manager = state.manager
    memory, statuses = manager.memory(), manager.statuses()
    engines = {name: _engine(factory.state(), named=named) for name, factory in manager.factories.items()}
    engines |= {
        name: {"state": "unavailable", "error": _cause(why, named=named)} for name, why in state.engine_errors.items()
    }
    specs = manager.catalog.specs()
    return {
        "status": state.phase,
        "trouble": _trouble(state, named=named),
        "uptime_s": round(time.monotonic() - state.started_s, 3),
        "device": state.device.kind,
        "engines": engines,
        "models": {
            "servable": len(statuses),
            "not_servable": sum(spec.availability is not Availability.AVAILABLE for spec in specs),
            "by_state": dict(collections.Counter(str(status.state) for status in statuses)),
            "active": [_active(status, named=named) for status in statuses if _is_active(status)],
        },
        "requests": {
            "running": sum(status.running for status in statuses),
            "queued": sum(status.queued for status in statuses),
            "answered_s_ago": _latest_answer(statuses),
        },
        "memory": {"budget_bytes": memory.budget_bytes, "charged_bytes": memory.charged_bytes},
        "config_error": _cause(state.config_error, named=named),
        "scan_error": _cause(state.scan_error, named=named),
    }


def _engine(told: Mapping[str, Any], *, named: bool) -> dict[str, Any]:
    """Where an engine's servers are, and what they, logs and pip say, is for those who may see names."""
    if named:
        return dict(told)
    shown = {key: value for key, value in told.items() if key not in PRIVATE}
    servers = [{key: value for key, value in each.items() if key not in PRIVATE} for each in told.get("servers", ())]
    return shown | ({"servers": servers} if servers else {})


def _is_active(status: ModelStatus) -> bool:
    return status.state is not State.COLD or bool(status.queued or status.running)


def _active(status: ModelStatus, *, named: bool) -> dict[str, Any]:
    """One model that is not simply cold: those may be thousands."""
    shown: dict[str, Any] = {"id": status.id, "error": status.error} if named else {}
    return shown | {
        "state": status.state,
        "running": status.running,
        "queued": status.queued,
        "answered_s_ago": _rounded(status.answered_s_ago),
        "expected_s": _rounded(status.expected_s),
    }


def _latest_answer(statuses: Sequence[ModelStatus]) -> float | None:
    """Seconds since any model last answered a request to its end."""
    return _rounded(min((s.answered_s_ago for s in statuses if s.answered_s_ago is not None), default=None))


def _rounded(duration_s: float | None) -> float | None:
    return None if duration_s is None else round(duration_s, 1)
