"""Finds the engine factories: entry-point group `roundhouse.engines`, those in the box included, and the declared."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from engines.base import Declaration, EngineContext, EngineFactory
from engines.lazy_factory import LazyFactory
from models.types import Registered, Task

GROUP = "roundhouse.engines"
ARCHITECTURES = "roundhouse.architectures"
IN_THE_BOX = frozenset({"vllm", "transformers"})
SERVED_TASKS = tuple(task.value for task in Task if task not in (Task.ADAPTER, Task.UNSUPPORTED))
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


def registered_architectures() -> tuple[dict[str, Registered], list[str]]:
    """What packages serve, by the architecture in config.json, and a sentence for each entry that says no such thing.

    An entry of the group `roundhouse.architectures` is named as the architecture, and its value is `engine:task`.
    Nothing is imported for it.
    """
    found: dict[str, Registered] = {}
    errors: list[str] = []
    for point in entry_points(group=ARCHITECTURES):
        engine, _, task = (part.strip() for part in point.value.partition(":"))
        if engine and task in SERVED_TASKS:
            found[point.name] = Registered(engine, Task(task))
        else:
            package = point.dist.name if point.dist else "a package"
            tasks = ", ".join(SERVED_TASKS)
            errors.append(
                f"{package} registers {point.name} as {point.value!r} ({ARCHITECTURES}): write engine:task, "
                f"the task being one of {tasks}"
            )
    return found, errors


def create_factories(
    context_for: Callable[[str], EngineContext], declared: Mapping[str, Declaration] | None = None
) -> Engines:
    """A factory of each registered and each declared engine; one that fails is left out, with the reason.

    Of registered engines only those in the box (or in their place), and those that the configuration names, are
    imported now; the others when a model first needs one. Where two packages register the same name, the last one found
    wins, so that an installed engine can replace ours; and what is declared goes before what is registered.
    """
    factories: dict[str, EngineFactory] = {}
    errors: dict[str, str] = {}

    def add(name: str, create: Callable[[EngineContext], EngineFactory]) -> None:
        try:
            factories[name] = create(context_for(name))
            errors.pop(name, None)
        except Exception as error:  # third-party code: whatever it raises must not keep the others from serving
            errors[name] = f"{type(error).__name__}: {error}"

    declared = declared or {}
    for point in entry_points(group=GROUP):
        now = point.name in IN_THE_BOX or point.name in declared
        add(point.name, partial(_from_entry_point if now else _when_needed, point))
    for name, declaration in declared.items():
        kind = declaration.kind or ("class" if declaration.class_path else None)
        if kind is not None:
            add(name, partial(_from_module, KINDS[kind]))
    return Engines(factories, errors)


def _from_entry_point(point: EntryPoint, context: EngineContext) -> EngineFactory:
    factory: EngineFactory = point.load()(context)
    return factory


def _when_needed(point: EntryPoint, context: EngineContext) -> EngineFactory:
    return LazyFactory(point.name, partial(_from_entry_point, point, context))


def _from_module(module: str, context: EngineContext) -> EngineFactory:
    factory: EngineFactory = importlib.import_module(module).create_factory(context)
    return factory
