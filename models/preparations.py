"""What some engines need before they can be loaded: made at the first request, without taking the device for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from engines.base import EngineFactory, EngineStartError, EngineUnavailable, Prepares
from models.errors import ModelUnusable, Unavailable
from models.scheduling.refusals import queue_full, shutting_down
from models.types import ModelSpec

RETRY_S = 5.0  # for those who are not let in to wait


class Preparations:
    """Asks the factories that have something to prepare; the others cost one look into a table."""

    def __init__(self, factories: Mapping[str, EngineFactory], most: Callable[[], int]) -> None:
        """`most`: how many requests may wait at once (`max_queued`)."""
        self._most = most
        self._factories = {name: factory for name, factory in factories.items() if isinstance(factory, Prepares)}
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    def needed(self, spec: ModelSpec) -> bool:
        factory = self._factories.get(spec.engine)
        return factory is not None and not factory.prepared(spec)

    def what(self, spec: ModelSpec) -> str | None:
        """What is made for `spec` now, for those who wait; None where nothing has to be."""
        return self._factories[spec.engine].preparing(spec) if self.needed(spec) else None

    async def make(self, spec: ModelSpec) -> None:
        """Returns once engines for `spec` can be loaded. Raises Unavailable, ModelUnusable, Busy and ShuttingDown."""
        if self._closed:
            raise shutting_down()
        if len(self._waiting) >= self._most():
            raise queue_full(len(self._waiting), "max_queued", spec.id, RETRY_S)
        making = asyncio.ensure_future(self._factories[spec.engine].prepare(spec))
        self._waiting.add(making)
        try:
            await making
        except EngineUnavailable as error:
            raise Unavailable(error.message, retry_after_s=error.retry_after_s) from None
        except EngineStartError as error:
            text = f"The model '{spec.id}' cannot be started as it is configured: {error.message}."
            raise ModelUnusable(text, param="model") from None
        except asyncio.CancelledError:
            if self._closed and making.cancelled():
                raise shutting_down() from None
            raise
        finally:
            self._waiting.discard(making)

    def close(self) -> None:
        """Refuses all who wait."""
        self._closed = True
        for making in self._waiting:
            making.cancel()
