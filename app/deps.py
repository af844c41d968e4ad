"""What the endpoints are given."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from app.state import AppState


def get_state(request: Request) -> AppState:
    state = request.app.state.roundhouse
    assert isinstance(state, AppState)
    return state


State = Annotated[AppState, Depends(get_state)]
