"""Keeps adapters from S3 storage in the state folder and in the catalog: the configured ones, and those asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import ModelUnusable
from models.fetching.address import Address
from models.types import ModelOverrides, ModelSpec


@dataclass(frozen=True, slots=True)
class Configured:
    """An adapter of the configuration: where it lies, and what else is said of it."""

    address: Address
    overrides: ModelOverrides


class Fetcher:
    """`put` is told all adapters that are known, whenever that changes."""

    def __init__(self, folder: Path, put: Callable[[Sequence[ModelSpec]], None], max_bytes: int) -> None:
        self._folder = folder
        self._put = put
        self._max_bytes = max_bytes

    def configure(self, configured: Mapping[str, Configured]) -> None:
        """By model id; what was configured before and is not among them goes."""

    async def fetch(self, address: Address) -> ModelSpec:
        """The adapter at `address`, in the catalog, complete. Raises RoundhouseError."""
        raise ModelUnusable(f"{address} cannot be fetched yet.", param="adapter_path")

    async def close(self) -> None:
        """Ends what is under way; half-fetched files are begun anew at the next start."""
