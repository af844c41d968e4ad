"""What of a valid configuration has no effect, because of the models that there are."""

from __future__ import annotations

from collections.abc import Iterator

from app.config import Settings
from app.config_source import nearest
from models.catalog import Catalog
from models.errors import RoundhouseError


def without_effect(settings: Settings, catalog: Catalog) -> set[str]:
    """A sentence for each model, alias or name of one that the configuration has and nothing answers to."""
    return {*_models(settings, catalog), *_aliases(settings, catalog), *_names(settings, catalog)}


def _models(settings: Settings, catalog: Catalog) -> Iterator[str]:
    known = [spec.id for spec in catalog.specs()]
    for name in settings.models.keys() - settings.adapter_sources().keys() - set(known):
        near = nearest(name, known)
        hint = f"; nearest: {near}" if near else ""
        yield f"The configuration of model {name} has no effect: no model has this id{hint}"


def _aliases(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for model_id, config in settings.models.items():
        for alias in config.aliases if catalog.get(model_id) else ():
            try:
                meant = catalog.resolve(alias).id
            except RoundhouseError as error:
                yield f"The alias {alias} is of no use: {error.message}"
            else:
                if meant != model_id:
                    yield f"The alias {alias} of model {model_id} has no effect: it means {meant}"


def _names(settings: Settings, catalog: Catalog) -> Iterator[str]:
    """Adapters that are being fetched are no fault."""
    coming = {name for each in settings.adapter_sources() for name in (each, *settings.models[each].aliases)}
    for setting in ("preload", "default_model"):
        for name in getattr(settings, setting):
            try:
                catalog.resolve(name)
            except RoundhouseError as error:
                if name not in coming:
                    yield f"{name} in {setting} has no effect: {error.message}"
