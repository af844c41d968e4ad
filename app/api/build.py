"""The FastAPI app: everything but the data plane, which `app.gate` answers before it gets here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app import health
from app.api import control, docs, info, metrics, models
from app.api.data_plane import documentation_router
from app.api.kserve import kserve_router
from app.errors import InvalidRequest, MethodNotAllowed, NotFound, RequestError, internal_error, protocol_of, render
from app.routes import ROUTES
from app.state import AppState
from models.errors import RoundhouseError
from utils.version import own_version

TITLE = "Roundhouse"
DESCRIPTION = "Every model of a folder behind one OpenAI-compatible address; name it in `model`, and it answers."


def build_control_app(state: AppState) -> FastAPI:
    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=own_version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.roundhouse = state
    for module in (models, control, info, metrics, docs):
        app.include_router(module.router)
    app.add_exception_handler(RoundhouseError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_fault)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's own documented way to extend it
    return app


def _answer(request: Request, error: RoundhouseError) -> Response:
    request_id = str(request.scope.get("request_id", ""))
    rendered = render(error, protocol_of(request.url.path), request_id)
    answer = Response(rendered.body, rendered.status)
    answer.raw_headers = rendered.headers
    return answer


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RoundhouseError)
    return _answer(request, error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """A body or parameter of the wrong shape: 400, naming the first field at fault."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"][1:] if not isinstance(part, int) or first["type"] != "json_invalid"]
    param = ".".join(parts) or None
    message = "the body is not valid JSON" if first["type"] == "json_invalid" else str(first["msg"])
    return _answer(request, InvalidRequest(f"{f'`{param}`: ' if param else ''}{message}.", param=param))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        return _answer(request, NotFound(f"There is no route {path}; {_hint(request.app, path)}"))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        return _answer(request, MethodNotAllowed(request.method, path, allowed))
    refused = RequestError(str(error.detail))
    refused.status = error.status_code
    return _answer(request, refused)


def _hint(app: FastAPI, path: str) -> str:
    """Base URLs are mostly given without their /v1, with one too many, or with a slash at the end."""
    known = {*ROUTES, *health.PATHS, *(route.path for route in app.routes if isinstance(route, APIRoute))}
    bare = "/" + path.strip("/")
    for guess in (bare, f"/v1{bare}", bare.removeprefix("/v1")):
        if guess in known:
            return f"did you mean {guess}?"
    return "OpenAI's API is at /v1, and GET /openapi.json lists all routes."


async def _on_fault(request: Request, error: Exception) -> Response:
    """What the client learns; the gate logs the fault itself."""
    return _answer(request, internal_error(str(request.scope.get("request_id", ""))))


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=[*documentation_router().routes, *kserve_router().routes, *app.routes],
        )
        schemes = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document.setdefault("components", {})["securitySchemes"] = schemes
        document["security"] = [{"bearer": []}, {"x-api-key": []}]
        app.openapi_schema = document
    return app.openapi_schema
