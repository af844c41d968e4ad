"""What is known of the running app; read by health, control routes and metrics."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.config import Settings
from app.memory import Device
from models.errors import Busy
from models.fetching.paths import AdapterPaths
from models.manager import ModelManager
from utils.telemetry import Metrics

FIRST_SCAN_WAIT_S = 20.0  # 10,000 folders take 2 s; a network drive may take longer

Phase = Literal["starting", "ready", "stopping"]


@dataclass(slots=True)
class AppState:
    """One per app. Written by `app.lifecycle` alone."""

    settings: Settings
    manager: ModelManager
    metrics: Metrics
    engine_errors: Mapping[str, str]  # engines that could not be imported, and why
    device: Device
    adapter_paths: AdapterPaths
    phase: Phase = "starting"
    config_error: str | None = None  # why the configuration file, as it is now, is not in use
    scan_error: str | None = None
    started_s: float = field(default_factory=time.monotonic)
    name: str = field(default_factory=lambda: f"roundhouse-{os.urandom(8).hex()}")  # of this one, for other servers
    scanned: asyncio.Event = field(default_factory=asyncio.Event)  # the models folder was read once (or could not be)

    async def wait_scanned(self) -> None:
        """A request that comes before the first scan waits for it: "unknown model" would be wrong, and is not retried.

        Raises Busy when that takes too long.
        """
        if self.scanned.is_set():
            return
        try:
            async with asyncio.timeout(FIRST_SCAN_WAIT_S):
                await self.scanned.wait()
        except TimeoutError:
            text = f"The models folder is still being read after {FIRST_SCAN_WAIT_S:.0f} s. Try again later."
            raise Busy(text, retry_after_s=FIRST_SCAN_WAIT_S) from None
