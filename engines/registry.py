"""Finds the engine factories: entry-point group `roundhouse.engines`, those in the box included, and the declared."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from engines.base import Declaration, EngineContext, EngineFactory

GROUP = "roundhouse.engines"
# What the configuration can declare, by `kind`; imported only where something is declared so.
KINDS = {
    "openai": "engines.remote.openai_factory",
    "triton": "engines.triton.triton_factory",
    "class": "engines.plugins.plugin_factory",
}


@dataclass(frozen=True, slots=True)
class Engines:
    """What could be made, and why the rest could not."""

    factories: Mapping[str, EngineFactory]
    errors: Mapping[str, str]


def create_factories(
    context_for: Callable[[str], EngineContext], declared: Mapping[str, Declaration] | None = None
) -> Engines:
    """A factory of each registered and each declared engine; one that fails is left out, with the reason.

    Where two packages register the same name, the last one found wins, so that an installed engine can replace ours;
    and what is declared goes before what is registered.
    """
    factories: dict[str, EngineFactory] = {}
    errors: dict[str, str] = {}

    def add(name: str, create: Callable[[EngineContext], EngineFactory]) -> None:
        try:
            factories[name] = create(context_for(name))
            errors.pop(name, None)
        except Exception as error:  # third-party code: whatever it raises must not keep the others from serving
            errors[name] = f"{type(error).__name__}: {error}"

    for point in entry_points(group=GROUP):
        add(point.name, partial(_from_entry_point, point))
    for name, declaration in (declared or {}).items():
        kind = declaration.kind or ("class" if declaration.class_path else None)
        if kind is not None:
            add(name, partial(_from_module, KINDS[kind]))
    return Engines(factories, errors)


def _from_entry_point(point: EntryPoint, context: EngineContext) -> EngineFactory:
    factory: EngineFactory = point.load()(context)
    return factory


def _from_module(module: str, context: EngineContext) -> EngineFactory:
    factory: EngineFactory = importlib.import_module(module).create_factory(context)
    return factory
