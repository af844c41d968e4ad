"""Where models come from: the models folder, servers elsewhere, adapters that were fetched. Merged into the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from models.catalog import Catalog
from models.types import ModelOverrides, ModelSpec

FOLDER = "the models folder"


class Sources:
    """Each source tells all that it has whenever that changes; of one id, the source that is named first has it.

    The models folder is named first, so that nothing that comes from elsewhere ever takes the place of a local model,
    unless the configuration says so: `engine` then names the source.
    """

    def __init__(
        self, catalog: Catalog, overrides: Mapping[str, ModelOverrides] | None = None, names: Sequence[str] = ()
    ) -> None:
        """`overrides`: what is configured, by id; the models folder has heeded it itself.

        `names`: the sources after the models folder; in this order, whichever is the first to tell what it has.
        """
        self._catalog = catalog
        self._overrides = overrides or {}
        self._specs: dict[str, tuple[ModelSpec, ...]] = dict.fromkeys((FOLDER, *names), ())

    def put(self, source: str, specs: Sequence[ModelSpec]) -> None:
        """All that `source` has now."""
        self._specs[source] = tuple(specs)
        self._catalog.replace(self._merged())

    def set_overrides(self, overrides: Mapping[str, ModelOverrides]) -> None:
        if overrides != self._overrides:
            self._overrides = overrides
            self._catalog.replace(self._merged())

    def _merged(self) -> list[ModelSpec]:
        chosen: dict[str, ModelSpec] = {}
        for source, specs in self._specs.items():
            for found in specs:
                spec = found if source == FOLDER else self._as_configured(found)
                first = chosen.setdefault(spec.id, spec)
                if first is not spec and self._configured_source(spec.id) == source:
                    chosen[spec.id] = spec
                elif first is not spec:
                    note = f"{source} has a model of this id, too, not used"
                    chosen[spec.id] = replace(first, reasons=(*first.reasons, note))
        return list(chosen.values())

    def _as_configured(self, spec: ModelSpec) -> ModelSpec:
        overrides = self._overrides.get(spec.id)
        if overrides is None:
            return spec
        reasons = spec.reasons if overrides.task is None else (*spec.reasons, f"{overrides.task}: configured")
        task, aliases = overrides.task or spec.task, overrides.aliases or spec.aliases
        return replace(spec, overrides=overrides, task=task, aliases=aliases, reasons=reasons)

    def _configured_source(self, model_id: str) -> str | None:
        overrides = self._overrides.get(model_id)
        return overrides.engine if overrides else None
