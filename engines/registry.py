"""Finds the engine factories that are installed: entry-point group `roundhouse.engines`, those in the box included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from engines.base import EngineContext, EngineFactory

GROUP = "roundhouse.engines"


@dataclass(frozen=True, slots=True)
class Engines:
    """What could be made, and why the rest could not."""

    factories: Mapping[str, EngineFactory]
    errors: Mapping[str, str]


def create_factories(context_for: Callable[[str], EngineContext]) -> Engines:
    """A factory of each registered engine; one that fails to import or to start up is left out, with the reason.

    Where two packages register the same name, the last one found wins, so that an installed engine can replace ours.
    """
    factories: dict[str, EngineFactory] = {}
    errors: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        try:
            factories[point.name] = _create(point, context_for(point.name))
            errors.pop(point.name, None)
        except Exception as error:  # third-party code: whatever it raises must not keep the others from serving
            errors[point.name] = f"{type(error).__name__}: {error}"
    return Engines(factories, errors)


def _create(point: EntryPoint, context: EngineContext) -> EngineFactory:
    factory: EngineFactory = point.load()(context)
    return factory
