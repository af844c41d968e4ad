"""LoRA adapters in engines that serve their base: put in when a request first needs them, taken out when they go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container
from contextlib import suppress

from engines.base import AdapterRefused, TakesAdapters
from models.runner import AdapterUse, Resident
from models.types import ModelSpec

log = logging.getLogger(__name__)

END_WAIT_S = 5.0  # for an engine that answered no more to be known as ended


async def ensure(resident: Resident, adapter: ModelSpec) -> bool:
    """Whether `resident` serves `adapter` now; False: its engine has ended. Raises AdapterRefused.

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
        # Whatever of it still runs has its old content: two of one name at a time would end vLLM's engine.
        await _none_running(resident, adapter.id)
        try:
            await engine.add_adapter(adapter)
        except AdapterRefused as refusal:
            if not refusal.reload:
                resident.refused_adapters[adapter.id] = (adapter.fingerprint, refusal.message)
            raise
        except Exception:  # whoever waits for the engine's end is told of it otherwise
            log.warning("%s: the adapter %s could not be put in", resident.spec.id, adapter.id, exc_info=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(engine.wait_exited(), END_WAIT_S)
            return False
        resident.adapters[adapter.id] = adapter.fingerprint
        log.info("%s: adapter %s is in", resident.spec.id, adapter.id)
        return True


def in_use(resident: Resident, spec: ModelSpec) -> AdapterUse | None:
    """A request for `spec` begins, which is to end it; None for the base itself, which needs no counting."""
    if spec.id == resident.spec.id:
        return None
    use = resident.adapter_uses.setdefault(spec.id, AdapterUse())
    use.begin()
    return use


async def remove(resident: Resident, adapter_id: str) -> None:
    """Takes an adapter out, after its running answers. One that is not in is no fault."""
    engine = resident.engine
    if not isinstance(engine, TakesAdapters):
        return
    async with resident.adapter_locks.setdefault(adapter_id, asyncio.Lock()):
        if adapter_id not in resident.adapters:
            return
        await _none_running(resident, adapter_id)
        await engine.remove_adapter(adapter_id)
        resident.adapters.pop(adapter_id, None)
    log.info("%s: adapter %s is out", resident.spec.id, adapter_id)


async def remove_gone(resident: Resident, known: Container[str]) -> None:
    """Takes out every adapter that is not among `known`."""
    gone = [adapter_id for adapter_id in resident.adapters if adapter_id not in known]
    await asyncio.gather(*(remove(resident, adapter_id) for adapter_id in gone))


async def _none_running(resident: Resident, adapter_id: str) -> None:
    """Returns when nothing runs with the adapter, and nothing begins to before it is put in anew."""
    resident.adapters[adapter_id] = None
    if (use := resident.adapter_uses.get(adapter_id)) is not None:
        await use.idle.wait()
