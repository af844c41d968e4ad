"""An engine of an installed package that nothing needs yet: imported when the first model is judged by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engines.base import Engine, EngineFactory, Prepares, Verdict
from models.types import ModelSpec


class LazyFactory:
    """See engines.base.EngineFactory. What its own methods raise, and what its import raised, goes on to the caller."""

    def __init__(self, name: str, create: Callable[[], EngineFactory]) -> None:
        self.name = name
        self._create = create
        self._factory: EngineFactory | None = None
        self._error = ""
        self._started = False
        self._starting: asyncio.Task[None] | None = None

    @property
    def remote(self) -> bool:
        """False where it cannot be imported, which `accepts` tells."""
        try:
            factory = self._made()
        except Exception:
            return False
        return bool(getattr(factory, "remote", False))

    def accepts(self, spec: ModelSpec) -> Verdict:
        try:
            factory = self._made()
        except Exception as error:  # somebody else's code
            return Verdict(False, f"its engine '{self.name}' cannot be imported: {error}")
        return factory.accepts(spec)

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        return self._made().reasons(spec, adapters)

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return self._made().estimate_bytes(spec, adapters)

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Engine:
        return self._made().create(spec, adapters)

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return self._made().sleep_levels(spec, adapters)

    def prepared(self, spec: ModelSpec) -> bool:
        factory = self._made()
        return factory.prepared(spec) if isinstance(factory, Prepares) else True

    async def prepare(self, spec: ModelSpec) -> None:
        factory = self._made()
        if isinstance(factory, Prepares):
            await factory.prepare(spec)

    def preparing(self, spec: ModelSpec) -> str:
        factory = self._made()
        return factory.preparing(spec) if isinstance(factory, Prepares) else ""

    async def start(self) -> None:
        self._started = True
        if self._factory is not None:
            await self._factory.start()

    def state(self) -> Mapping[str, Any]:
        if self._error:
            return {"state": "unavailable", "error": self._error}
        return self._factory.state() if self._factory is not None else {"state": "not needed yet"}

    async def close(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
        if self._factory is not None:
            await self._factory.close()

    def _made(self) -> EngineFactory:
        """Raises RuntimeError where it could not be imported; that is not tried again."""
        if self._error:
            raise RuntimeError(self._error)
        if self._factory is None:
            try:
                self._factory = self._create()
            except Exception as error:
                self._error = f"{type(error).__name__}: {error}"
                raise RuntimeError(self._error) from error
            if self._started:
                self._starting = asyncio.get_running_loop().create_task(self._factory.start())
        return self._factory
