"""LoRA adapters in engines that serve their base: put in when a request first needs them, taken out when they go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container

from engines.base import AdapterRefused, TakesAdapters
from models.runner import Resident
from models.types import ModelSpec

log = logging.getLogger(__name__)


async def ensure(resident: Resident, adapter: ModelSpec) -> bool:
    """Whether `resident` serves `adapter` now; False: its engine is about to end. Raises AdapterRefused.

    What was refused once is refused at once until the adapter's folder or the engine is another.
    """
    engine = resident.engine
    if not isinstance(engine, TakesAdapters):
        raise AdapterRefused("its engine takes adapters only at its start", reload=True)
    async with resident.adapter_locks.setdefault(adapter.id, asyncio.Lock()):
        if resident.made_for(adapter):
            return True
        known = resident.refused_adapters.get(adapter.id)
        if known is not None and known[0] == adapter.fingerprint:
            raise AdapterRefused(known[1])
        try:
            await engine.add_adapter(adapter)
        except AdapterRefused as refusal:
            if not refusal.reload:
                resident.refused_adapters[adapter.id] = (adapter.fingerprint, refusal.message)
            raise
        except Exception:  # whoever waits for the engine's end is told of it otherwise
            log.warning("%s: the adapter %s could not be put in", resident.spec.id, adapter.id, exc_info=True)
            return False
        resident.adapters[adapter.id] = adapter.fingerprint
        log.info("%s: adapter %s is in", resident.spec.id, adapter.id)
        return True


async def remove_gone(resident: Resident, known: Container[str]) -> None:
    """Takes out every adapter that is not among `known`."""
    engine = resident.engine
    if not isinstance(engine, TakesAdapters):
        return
    for adapter_id in [adapter_id for adapter_id in resident.adapters if adapter_id not in known]:
        async with resident.adapter_locks.setdefault(adapter_id, asyncio.Lock()):
            resident.adapters.pop(adapter_id, None)
            await engine.remove_adapter(adapter_id)
        log.info("%s: adapter %s is out", resident.spec.id, adapter_id)
