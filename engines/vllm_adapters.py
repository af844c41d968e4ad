"""LoRA adapters in a running engine of vLLM: put in and taken out by the routes that its server has for that.

What vLLM 0.32 does there, and what follows from it:

- `load_inplace` stays with the adapter, which is then read from its folder again for every batch. So one that was
  replaced is taken out and put in anew, which gives it a number of its own.
- Blocks of the KV cache are known by the adapter's name and path. So each content gets a path of its own, a link.
- An adapter that cannot be read while its requests run ends the engine. So all that can be known beforehand is looked
  at beforehand, and nothing relies on vLLM's reading it a second time (see vllm_lora: copies in host memory).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engines.base import AdapterRefused
from engines.engine_http import EngineCallFailed, post
from engines.lora_fit import misfit
from engines.process import SCRATCH_SUFFIX, ProcessEngine
from engines.sleeping import SleepableEngine
from engines.tensor_shapes import tensors
from engines.vllm_lora import adapter_rank
from engines.vllm_sleep import Answers
from engines.waiting import run_to_the_end
from models.types import ModelSpec

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 120.0
UNLOAD_TIMEOUT_S = 10.0
CHUNK_BYTES = 1 << 20
ENDING = "EngineCore encountered an issue"  # what vLLM answers when the engine is about to end, whatever was asked

Ranks = Callable[[Sequence[ModelSpec]], int | None]


class RunningAdapters:
    """Those of one engine, which serves `base` at `uds`.

    `served_rank`: up to which rank an engine would take adapters that is started with those given; None: none at all.
    """

    def __init__(self, base: ModelSpec, uds: Path, found: Sequence[ModelSpec], served_rank: Ranks) -> None:
        self.names = [base.id]  # that the engine answers to now, the base's first
        self._base = base
        self._uds = uds
        self._links = uds.with_suffix(SCRATCH_SUFFIX) / "adapters"
        self._found = found
        self._served_rank = served_rank
        self._fingerprints: dict[str, str] = {}
        self._rank: int | None = None

    def begin(self, rank: int | None) -> None:
        """The engine starts, empty: `rank` is up to which it takes adapters."""
        self._rank = rank
        self._fingerprints.clear()
        del self.names[1:]

    async def add(self, adapter: ModelSpec) -> bool:
        """Whether the engine has it only now, or in a content that is new. Raises AdapterRefused, EngineCallFailed."""
        if self._fingerprints.get(adapter.id) == adapter.fingerprint:
            return False
        await asyncio.to_thread(self._check, adapter)
        # To the end also when the request that it is for goes away: else nobody would know whether it is in.
        await run_to_the_end(self._replace(adapter))
        return True

    async def remove(self, adapter_id: str) -> None:
        if self._fingerprints.pop(adapter_id, None) is None:
            return
        self.names.remove(adapter_id)
        try:
            async with asyncio.timeout(UNLOAD_TIMEOUT_S):
                await post(self._uds, "/v1/unload_lora_adapter", {"lora_name": adapter_id})
        except (EngineCallFailed, TimeoutError) as error:
            log.warning("%s: the adapter %s could not be taken out: %s", self._base.id, adapter_id, error)

    def _check(self, adapter: ModelSpec) -> None:
        """Raises AdapterRefused. Reads headers, and then the files once, so that vLLM need not wait for the disk."""
        rank = adapter_rank(adapter.path)
        if self._rank is None or rank > self._rank:
            raise self._beyond(adapter, rank)
        own, base = (tensors(spec.path, spec.fingerprint) for spec in (adapter, self._base))
        if why := misfit(own, base, rank):
            raise AdapterRefused(f"{why}.")
        _read_ahead(adapter.path)

    def _beyond(self, adapter: ModelSpec, rank: int) -> AdapterRefused:
        others = [other for other in self._found if other.id != adapter.id]
        anew = self._served_rank([*others, adapter])
        if anew is None:
            return AdapterRefused("engine_args turn LoRA off for its base; remove that from roundhouse.yaml.")
        if rank > anew:
            return AdapterRefused(f"it has rank {rank}, and max-lora-rank is configured to be {anew}.")
        if self._rank is None:
            return AdapterRefused("its base was started without LoRA", reload=True)
        return AdapterRefused(f"it has rank {rank}, its base was started for up to {self._rank}", reload=True)

    async def _replace(self, adapter: ModelSpec) -> None:
        await self.remove(adapter.id)
        link = await asyncio.to_thread(self._link, adapter)
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await post(self._uds, "/v1/load_lora_adapter", {"lora_name": adapter.id, "lora_path": str(link)})
        except EngineCallFailed as error:
            if error.status is None or error.words.startswith(ENDING):
                raise
            raise AdapterRefused(f"vLLM says: {error.words}") from error
        except TimeoutError:
            raise AdapterRefused(f"vLLM did not load it within {LOAD_TIMEOUT_S:.0f} s.") from None
        self._fingerprints[adapter.id] = adapter.fingerprint
        self.names.append(adapter.id)

    def _link(self, adapter: ModelSpec) -> Path:
        content = f"{adapter.path}\0{adapter.fingerprint}".encode()
        link = self._links / hashlib.sha256(content).hexdigest()[:16]
        self._links.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(adapter.path)
        return link


class VllmEngine(ProcessEngine):
    """With the adapters that are in it (see engines.base.TakesAdapters)."""

    def __init__(self, running: RunningAdapters, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._running = running

    async def add_adapter(self, adapter: ModelSpec) -> None:
        await self._running.add(adapter)

    async def remove_adapter(self, adapter_id: str) -> None:
        await self._running.remove(adapter_id)


class SleepableVllmEngine(SleepableEngine[Answers]):
    """The same for one that may sleep: what it is asked before it does and after changes with its adapters."""

    def __init__(self, running: RunningAdapters, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._running = running

    async def add_adapter(self, adapter: ModelSpec) -> None:
        if await self._running.add(adapter):
            self._canary = None

    async def remove_adapter(self, adapter_id: str) -> None:
        await self._running.remove(adapter_id)


def _read_ahead(folder: Path) -> None:
    """Into the page cache: vLLM reads an adapter between two steps, while every answer waits."""
    for file in folder.glob("*.safetensors"):
        with suppress(OSError), file.open("rb", buffering=0) as stream:
            while stream.read(CHUNK_BYTES):
                pass
