"""Which model answers a request that names none, as the clients of text-embeddings-inference send it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from app.errors import InvalidRequest
from app.routes import Route
from models.errors import AmbiguousModel, UnknownModel
from models.manager import ModelManager
from models.types import ModelSpec


def default_model(manager: ModelManager, route: Route, preferred: Sequence[str]) -> ModelSpec:
    """The only model that `route` has, else the first of those `preferred` that is among them.

    Raises InvalidRequest that lists them where that leaves none.
    """
    specs = [spec for spec in manager.catalog.specs() if route.serves(spec)]
    served = {spec.id: spec for spec in specs if manager.servable.refusal(spec) is None}
    if len(served) == 1:
        return next(iter(served.values()))
    for name in preferred:
        with suppress(UnknownModel, AmbiguousModel):
            if (spec := manager.catalog.resolve(name)).id in served:
                return spec
    if not served:
        raise InvalidRequest(f"No model in the models folder can be served at {route.path}.", param="model")
    raise InvalidRequest(
        f"`model` is missing, and several models are served at {route.path}: {', '.join(served)}. Name one, or set "
        "default_models.",
        param="model",
    )
