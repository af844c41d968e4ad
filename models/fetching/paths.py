"""What a client may name as an adapter: a model id, a folder of the models folder, or a place in S3 storage."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from models.catalog import Catalog
from models.discovery.safety import Boundary, printable
from models.errors import AdapterPathRefused, UnknownModel, WrongTask
from models.fetching.address import SCHEME, Address
from models.types import ModelSpec, Task

MAX_PATH_CHARS = 4096  # as long as Linux lets a path be


class Fetches(Protocol):
    """As `models.fetching.fetcher.Fetcher`."""

    async def fetch(self, address: Address) -> ModelSpec:
        """The adapter at `address`, in the catalog, complete. Raises RoundhouseError."""
        ...


class AdapterPaths:
    """Resolves the `adapter_path` of the WebSocket protocol; nothing outside of the allowed roots is looked at."""

    def __init__(
        self, catalog: Catalog, models_dir: Path, fetcher: Fetches, check: Callable[[ModelSpec], None]
    ) -> None:
        """`check` raises ModelUnusable for a model that cannot be served, as `ModelManager.check`."""
        self._catalog = catalog
        self._models_dir = models_dir.absolute()
        self._fetcher = fetcher
        self._check = check

    async def resolve(self, adapter_path: str) -> ModelSpec:
        """The adapter that `adapter_path` names; it can be leased.

        `adapter_path` is an id or alias, a folder of the models folder (absolute or relative to it), or
        `s3://bucket/prefix`, which is fetched first: that may take minutes, and goes on when the caller is cancelled.

        Raises AdapterPathRefused (no such path, or outside of the allowed roots), UnknownModel, AmbiguousModel,
        WrongTask (not an adapter), ModelUnusable (broken, or its base is missing), Unavailable (the storage is).
        """
        spec = await self._found(adapter_path)
        if spec.task is not Task.ADAPTER:
            text = f"'{spec.id}' is a {spec.task.value} model, not a LoRA adapter. Name it as the request's model."
            raise WrongTask(text, param="adapter_path")
        self._check(spec)
        return spec

    async def _found(self, adapter_path: str) -> ModelSpec:
        if not adapter_path or len(adapter_path) > MAX_PATH_CHARS or not adapter_path.isprintable():
            raise self._refused("is empty, too long, or has control characters")
        if adapter_path.startswith(SCHEME):
            try:
                address = Address.parse(adapter_path)
            except ValueError as error:
                raise self._refused(f"cannot be used: {error}") from None
            return await self._fetcher.fetch(address)
        try:
            return self._catalog.resolve(adapter_path)
        except UnknownModel as error:
            return await asyncio.to_thread(self._in_models_dir, adapter_path, error)

    def _in_models_dir(self, adapter_path: str, unknown: UnknownModel) -> ModelSpec:
        boundary = Boundary(str(self._models_dir))
        real = os.path.realpath(self._models_dir / adapter_path)
        if not boundary.holds(real):  # the same for what is there and what is not
            raise self._refused(f"'{printable(adapter_path)}' is outside of the allowed roots")
        for spec in self._catalog.specs():
            if os.path.realpath(spec.path) == real:
                return spec
        raise self._refused(f"names no adapter: {unknown.message.rstrip('.')}")

    def _refused(self, why: str) -> AdapterPathRefused:
        text = (
            f"adapter_path {why}. Allowed are the id of an adapter, its folder in {self._models_dir}, and "
            f"{SCHEME}bucket/prefix."
        )
        return AdapterPathRefused(text, param="adapter_path")
