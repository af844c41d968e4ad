"""Applies changes of the configuration file without a restart, and says which of them need one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from app.config import ConfigError, Settings, config_path, load_settings
from models.scheduling.policy import Policy
from utils.logging import logger

POLL_S = 0.5  # a stat of one file: cheaper than another watcher, and right on every kind of mount
LIVE = frozenset(Policy.__dataclass_fields__) | {
    "default_model",
    "models",
    "shutdown_timeout_s",
    "wait_timeout_s",
    "sse_comment_s",
    "progress_text",
}

Apply = Callable[[Settings, Settings], Awaitable[None]]
Signature = tuple[Path, int, int, int] | None


class ConfigReloader:
    """Polls the file; `apply(old, new)` is awaited with settings that are valid as a whole."""

    def __init__(self, settings: Settings, apply: Apply, on_error: Callable[[str | None], None]) -> None:
        self._settings = settings
        self._apply = apply
        self._on_error = on_error
        self._seen = signature(settings)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.check()
            except Exception:  # the top of a task: it must live on, and the shutdown waits for it
                logger.exception("The changed configuration could not be applied")

    async def check(self) -> None:
        """Applies the file if it has changed since the last look; a file with an error changes nothing."""
        now = signature(self._settings)
        if now == self._seen:
            return
        self._seen = now
        try:
            new = await asyncio.to_thread(load_settings, self._settings.given())
        except ConfigError as error:
            logger.error("The changed configuration is not applied, everything stays as it was:\n{}", error)
            self._on_error(str(error))
            return
        self._on_error(None)
        old, self._settings = self._settings, new
        report(old, new)
        await self._apply(old, new)


def signature(settings: Settings) -> Signature:
    try:
        path = config_path(settings)
        status = path.stat() if path else None
    except (ConfigError, OSError):
        return None
    return (path, status.st_ino, status.st_size, status.st_mtime_ns) if path and status else None


def report(old: Settings, new: Settings) -> None:
    """Says in the log what is applied, and what waits for the next start."""
    changed = [name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)]
    live = [name for name in changed if name in LIVE]
    later = [name for name in changed if name not in LIVE]
    if live:
        logger.info("Configuration applied: {}", ", ".join(live))
    if later:
        logger.warning("Changed in the configuration, but in effect only after a restart: {}", ", ".join(later))
