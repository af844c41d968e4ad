"""Where models come from: the models folder, servers elsewhere, adapters that were fetched. Merged into the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.catalog import Catalog
from models.types import ModelSpec

FOLDER = "the models folder"


class Sources:
    """Each source tells all that it has whenever that changes; of one id, the source that was named first has it.

    The models folder is named first, so that nothing that comes from elsewhere ever takes the place of a local model.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._specs: dict[str, tuple[ModelSpec, ...]] = {FOLDER: ()}

    def put(self, source: str, specs: Sequence[ModelSpec]) -> None:
        """All that `source` has now."""
        self._specs[source] = tuple(specs)
        self._catalog.replace(self._merged())

    def _merged(self) -> list[ModelSpec]:
        chosen: dict[str, ModelSpec] = {}
        for source, specs in self._specs.items():
            for spec in specs:
                first = chosen.setdefault(spec.id, spec)
                if first is not spec:
                    note = f"{source} has a model of this id, too, not used"
                    chosen[spec.id] = replace(first, reasons=(*first.reasons, note))
        return list(chosen.values())
