"""The models that have an engine of their own and can be served: what the scheduler is told of, and what names mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from models.catalog import Catalog
from models.errors import ModelUnusable, RoundhouseError, Unavailable, UnknownModel
from models.footprints import FootprintStore
from models.scheduling.policy import Limits
from models.servable import Servable
from models.types import ModelSpec, Task

MOVING_RETRY_S = 5.0  # for answers of the engine before to end


class Roster:
    """The catalog, less what cannot be served and adapters. Only the manager calls it."""

    def __init__(self, catalog: Catalog, servable: Servable, footprints: FootprintStore) -> None:
        self._catalog = catalog
        self._servable = servable
        self._footprints = footprints
        self._specs: dict[str, ModelSpec] = {}
        self.moving: set[str] = set()
        self.readapted: set[str] = set()  # ids of those whose adapters the last `renew` found to be others
        self._adapters: dict[str, dict[str, str]] = {}  # by base: id → fingerprint
        self.accepted: dict[str, ModelSpec] = {}  # these, and the adapters that can be served

    def __getitem__(self, model_id: str) -> ModelSpec:
        return self._specs[model_id]

    def get(self, model_id: str) -> ModelSpec | None:
        return self._specs.get(model_id)

    def ids(self) -> list[str]:
        """Sorted."""
        return sorted(self._specs)

    def renew(self, present: Mapping[str, bool]) -> tuple[list[str], list[tuple[ModelSpec | None, ModelSpec]]]:
        """Takes over what the catalog has now. Returns the ids that went, and (before, after) of all that differs.

        `present`: the models of which something is left, and whether that is elsewhere. A model that is served
        elsewhere now, or here again, goes first: as long as it is among them, it is left out, and named in `moving`.
        """
        self.accepted = {spec.id: spec for spec in self._catalog.specs() if self._servable.refusal(spec) is None}
        specs = {model_id: spec for model_id, spec in self.accepted.items() if spec.task is not Task.ADAPTER}
        self._renew_adapters()
        before = self._specs
        self.moving = {spec.id for spec in specs.values() if self._moves(spec, present)}
        self._specs = specs = {model_id: spec for model_id, spec in specs.items() if model_id not in self.moving}
        changed = [(before.get(spec.id), spec) for spec in specs.values() if before.get(spec.id) != spec]
        return sorted(before.keys() - specs.keys()), changed

    def _renew_adapters(self) -> None:
        before, self._adapters = self._adapters, {}
        for spec in self.accepted.values():
            if spec.task is Task.ADAPTER:
                self._adapters.setdefault(self._catalog.base_of(spec).id, {})[spec.id] = spec.fingerprint
        bases = before.keys() | self._adapters.keys()
        self.readapted = {base for base in bases if before.get(base) != self._adapters.get(base)}

    def _moves(self, spec: ModelSpec, present: Mapping[str, bool]) -> bool:
        return spec.id in present and present[spec.id] != self._servable.is_remote(spec)

    def drop(self, model_id: str) -> None:
        """It cannot be served for now: the next `renew` tells of it anew."""
        del self._specs[model_id]

    def clear(self) -> None:
        """The next `renew` tells of every model anew."""
        self._specs = {}

    def check(self, spec: ModelSpec) -> None:
        """Raises ModelUnusable, with the reasons, for a model that cannot be served."""
        if self.accepted.get(spec.id) is spec:  # the hot path: it was judged when it became known
            return
        refusal = self._servable.refusal(spec)
        if refusal is not None:
            raise ModelUnusable(refusal, param="model")

    def current(self, spec: ModelSpec) -> ModelSpec:
        """What the catalog has of it now: it may have changed since the caller asked, or gone. Raises UnknownModel."""
        found = self._catalog.get(spec.id)
        if found is None:
            raise self.removal(spec.id)
        return found

    def base(self, spec: ModelSpec) -> ModelSpec:
        """The model whose engine serves `spec`. Raises as `check` does."""
        if self._specs.get(spec.id) is spec:
            return spec
        self.check(spec)
        base = self._catalog.base_of(spec)
        if base.id not in self._specs:
            raise self.removal(base.id)
        return base

    def removal(self, model_id: str) -> RoundhouseError:
        """What waiting requests are told when their model can no longer be served."""
        if model_id in self.moving:
            text = f"The model '{model_id}' has changed its engine; answers of the one before are still running."
            return Unavailable(text, param="model", retry_after_s=MOVING_RETRY_S)
        spec = self._catalog.get(model_id)
        refusal = self._servable.refusal(spec) if spec else None
        if spec and not refusal:  # see drop
            refusal = f"What the model '{model_id}' takes cannot be told; the log says why."
        if refusal:
            return ModelUnusable(refusal, param="model")
        return UnknownModel(f"The model '{model_id}' was removed from the models folder.", param="model")

    def limits(self, spec: ModelSpec) -> Limits:
        """What the scheduler is told of `spec`, from what was measured of this content of its folder."""
        return self._servable.limits(spec, self._footprints.get(spec.id, spec.fingerprint))

    def to_preload(self, names: Iterable[str]) -> set[str]:
        """Ids of the models that are to be loaded at start: by `names`, which may be aliases, or by their settings."""
        wanted = {spec.id for spec in self._specs.values() if spec.overrides.preload}
        return wanted | {spec.id for name in names if (spec := self._find(name))}

    def _find(self, name: str) -> ModelSpec | None:
        try:
            spec = self._catalog.base_of(self._catalog.resolve(name))
        except RoundhouseError:
            return None
        return spec if spec.id in self._specs else None
