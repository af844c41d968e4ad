"""GET /metrics, in Prometheus' text form."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.deps import State

router = APIRouter(tags=["metrics"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/metrics", response_class=Response)
async def metrics(state: State) -> Response:
    return Response(state.metrics.render(), media_type=CONTENT_TYPE)
