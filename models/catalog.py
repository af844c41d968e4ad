"""What exists (not what is loaded): the models that discovery found, and which of them a name means."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from contextlib import suppress

from models.errors import AmbiguousModel, UnknownModel
from models.types import Availability, ModelSpec, Task

NEAREST_IDS = 3  # as many as a person reads in an error message


class Catalog:
    """An immutable snapshot at a time: `replace` swaps the whole of it, so that readers never see half a change."""

    def __init__(self, specs: Iterable[ModelSpec] = ()) -> None:
        self._listeners: list[Callable[[], None]] = []
        self._fill(specs)

    def _fill(self, specs: Iterable[ModelSpec]) -> None:
        self._specs = {spec.id: spec for spec in sorted(specs, key=lambda spec: spec.id)}
        names: dict[str, set[str]] = {}
        tails: dict[str, set[str]] = {}
        for spec in self._specs.values():
            for name in (spec.id, *spec.aliases):
                names.setdefault(name.casefold(), set()).add(spec.id)
            if "://" not in spec.id:  # fetched on a client's word: no reason to make other names ambiguous
                tails.setdefault(spec.id.rpartition("/")[2].casefold(), set()).add(spec.id)
        # Exact names go before last parts, so that a new folder never takes a name that somebody configured.
        self._names, self._tails = names, tails
        self._adapters: dict[str, list[ModelSpec]] = {}  # by the id of their base
        for spec in self._specs.values():
            if spec.task is Task.ADAPTER and spec.availability is Availability.AVAILABLE:
                with suppress(UnknownModel):
                    self._adapters.setdefault(self.base_of(spec).id, []).append(spec)

    def replace(self, specs: Iterable[ModelSpec]) -> None:
        """Takes the place of all that was known; listeners are told."""
        self._fill(specs)
        for listener in self._listeners:
            listener()

    def subscribe(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def specs(self) -> list[ModelSpec]:
        """Every model, sorted by id."""
        return list(self._specs.values())

    def get(self, model_id: str) -> ModelSpec | None:
        """By exact id only."""
        return self._specs.get(model_id)

    def resolve(self, name: str) -> ModelSpec:
        """The model that `name` means: its id, an alias, or an unambiguous last part of an id, in any case.

        Raises UnknownModel (naming the nearest ids) or AmbiguousModel (naming all that it could mean).
        """
        exact = self._specs.get(name)
        if exact is not None:
            return exact
        found = self._found(name)
        if not found:
            raise UnknownModel(self._unknown(name), param="model")
        if len(found) > 1:
            choices = ", ".join(sorted(found))
            raise AmbiguousModel(f"The model name '{name}' could mean {choices}. Use the whole id.", param="model")
        return self._specs[next(iter(found))]

    def adapters_of(self, base: ModelSpec) -> list[ModelSpec]:
        """The LoRA adapters whose parent is `base`."""
        return list(self._adapters.get(base.id, ()))

    def base_of(self, spec: ModelSpec) -> ModelSpec:
        """The model whose engine serves `spec`: itself, or an adapter's base. Raises UnknownModel without that base.

        `base_model_name_or_path` is an id, an alias, or (often a path of the machine that trained it) its last part.
        """
        if spec.task is not Task.ADAPTER:
            return spec
        parent = spec.parent or ""
        for name in (parent, parent.rstrip("/").rpartition("/")[2]):
            # Not by `resolve`: naming the nearest ids takes long, and this is asked of each adapter at each change.
            found = self._specs.get(name) or self._only(self._found(name))
            if found is not None and found.task is not Task.ADAPTER:
                return found
        raise UnknownModel(
            f"The adapter '{spec.id}' needs its base model '{parent}', which is not in the models folder. Put it "
            "there, or set base_model_name_or_path in adapter_config.json to the id of one that is.",
            param="model",
        )

    def _found(self, name: str) -> set[str]:
        """Ids that `name` could mean, spelled in whatever case."""
        folded = name.casefold()
        return self._names.get(folded) or self._tails.get(folded) or set()

    def _only(self, found: set[str]) -> ModelSpec | None:
        return self._specs[next(iter(found))] if len(found) == 1 else None

    def _unknown(self, name: str) -> str:
        servable = [spec.id for spec in self._specs.values() if spec.availability is Availability.AVAILABLE]
        if not servable:
            return f"The model '{name}' does not exist: the models folder has no model that can be served."
        by_folded = {model_id.casefold(): model_id for model_id in servable}
        by_folded |= {model_id.rpartition("/")[2].casefold(): model_id for model_id in servable}
        # Only the head of an absurdly long name is compared: difflib's time grows with its square.
        near = difflib.get_close_matches(name.casefold()[:200], by_folded, n=NEAREST_IDS, cutoff=0.4)
        nearest = list(dict.fromkeys(by_folded[match] for match in near)) or servable[:NEAREST_IDS]
        return f"The model '{name[:200]}' does not exist. Nearest: {', '.join(nearest)}. GET /v1/models lists all."
