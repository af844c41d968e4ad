"""Which model answers a request that names none, as WebSocket clients and those of TEI may send it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from app.errors import InvalidRequest
from app.routes import Route
from models.errors import AmbiguousModel, UnknownModel
from models.manager import ModelManager
from models.types import ModelSpec, Task


def default_model(manager: ModelManager, route: Route, preferred: Sequence[str]) -> ModelSpec:
    """The first of those `preferred` that `route` serves, else the only model that it serves, adapters left aside.

    Raises UnknownModel where it serves none, and InvalidRequest that lists them where there are several.
    """
    for name in preferred:  # before all are judged, which takes long where there are many
        with suppress(UnknownModel, AmbiguousModel):
            spec = manager.catalog.resolve(name)
            if route.serves(spec) and manager.servable.refusal(spec) is None:
                return spec
    specs = [spec for spec in manager.catalog.specs() if route.serves(spec)]
    served = {spec.id: spec for spec in specs if manager.servable.refusal(spec) is None}
    models = [spec for spec in served.values() if spec.task is not Task.ADAPTER]
    if not models:
        raise UnknownModel(f"No model in the models folder can be served at {route.path}.", param="model")
    if len(models) == 1:
        return models[0]
    raise InvalidRequest(
        f"`model` is missing, and several models are served at {route.path}: {', '.join(served)}. Name one, or set "
        "default_model.",
        param="model",
    )
