"""The environment of an engine that names requirements: made on first use, kept in the state folder, used again.

Its folder's name has a digest of what it is made of, so that other requirements are another environment. The file
`roundhouse-complete` in it is written last; a folder without it is made anew, with the versions in `….pins.txt` beside
it where an earlier one had come to its end. Making it runs in a process of its own (engines.runtime.plugin_runtime),
with a lock that counts between processes, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engines import engine_log
from engines.base import EngineContext, EngineStartError, EngineUnavailable
from engines.launcher import Launcher
from engines.runtime.plugin_runtime import is_complete, python_of
from engines.runtime.protocol import EngineRequest
from engines.waiting import run_to_the_end

log = logging.getLogger(__name__)

FORMAT = 1  # of an environment; another number makes them all anew
LINE_CHARS = 120  # of pip's last line, for those who wait
FIRST_PAUSE_S = 10.0  # after a failure; doubled by each more …
MAX_PAUSE_S = 600.0  # … up to this
_RAISED = re.compile(r"^[\w.]*InstallFailed: (.*?)(?: \(ended with [^()]*\))?$", re.DOTALL)


class Environment:
    """That of one engine. Made at most once at a time, for all who wait for it."""

    def __init__(
        self, context: EngineContext, python: str, launcher: Launcher, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`python` is the path of the interpreter that it is made with."""
        self._name = context.name
        self._python = python
        self._requirements = context.declared.requirements
        self._timeout_s = context.declared.install_timeout_s
        self._launcher = launcher
        self._log_path = context.log_dir / f"environment-{self._name}.log"
        self._clock = clock
        self._root = context.cache_dir / "environments"
        self.folder = self._root / f"{self._name}-{digest_of(python, self._requirements)}"
        self._scratch = context.run_dir / f"{self.folder.name[-12:]}.env"
        self._making: asyncio.Task[None] | None = None
        self._since_s = 0.0
        self._failures = 0
        self._failure = ""
        self._again_s = 0.0

    @property
    def python(self) -> Path:
        return python_of(self.folder)

    def is_there(self) -> bool:
        return is_complete(self.folder)

    def others(self) -> list[str]:
        """Names of older environments of this engine, which nothing uses any more."""
        try:
            names = [entry.name for entry in os.scandir(self._root) if entry.is_dir()]
        except OSError:
            return []
        form = re.compile(re.escape(self._name) + r"-[0-9a-f]{12}")
        return sorted(name for name in names if form.fullmatch(name) and name != self.folder.name)

    def state(self) -> str:
        """`ready`, `installing`, `failed`, or `not made`."""
        if self._making is not None:
            return "installing"
        return "ready" if self.is_there() else "failed" if self._failure else "not made"

    def doing(self) -> str:
        """What is being done now, for those who wait; why it failed, if it did."""
        if self._making is None:
            return self._failure
        lines = engine_log.read_end(self._log_path, 4096).rstrip().splitlines()
        last = f": {lines[-1].strip()[:LINE_CHARS]}" if lines else ""
        return (
            f"installing the environment of the engine '{self._name}', for {self._clock() - self._since_s:.0f} s{last}"
        )

    async def make(self) -> None:
        """Returns when it is there. Raises EngineUnavailable. Cancelled, it goes on: others may wait for it."""
        if self._making is None and self._clock() >= self._again_s:
            self._since_s = self._clock()
            self._making = asyncio.create_task(self._make(), name=f"environment of {self._name}")
        if self._making is not None:
            await asyncio.shield(self._making)
        if self._failure:
            raise EngineUnavailable(self._failure, retry_after_s=max(0.0, self._again_s - self._clock()))

    async def close(self) -> None:
        """Breaks off; returns when nothing of it is left."""
        making = self._making
        if making is not None:
            making.cancel()
            await asyncio.wait([making])

    async def _make(self) -> None:
        log.info("the environment of the engine %s is made (%s)", self._name, self._log_path)
        try:
            self._failure = await self._failure_of_install()
        except asyncio.CancelledError:
            self._failure = "Roundhouse is shutting down."
            raise
        except Exception as error:  # whoever waits must hear of it
            log.exception("the environment of %s", self._name)
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._making = None
        took_s = self._clock() - self._since_s
        if not self._failure:
            self._failures, self._again_s = 0, 0.0
            log.info("the environment of the engine %s is made, in %.1f s", self._name, took_s)
            return
        self._failures += 1
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._failures - 1))
        self._again_s = self._clock() + pause_s
        self._failure = (
            f"The environment of the engine '{self._name}' could not be made: {self._failure.rstrip('.')}. See "
            f"{self._log_path}. It is tried again with the next request in {pause_s:.0f} s or later."
        )
        log.error("%s", self._failure)

    async def _failure_of_install(self) -> str:
        """Installs; why that failed, empty where it did not."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        request = EngineRequest(
            name=f"environment of {self._name}",
            uds=str(self._scratch.with_suffix(".sock")),  # there is none: this does not serve
            model_path="",
            log_path=str(self._log_path),
            args={"folder": str(self.folder), "python": self._python, "requirements": list(self._requirements)},
            scratch=str(self._scratch),
        )
        await self._launcher.start()
        try:
            process = await self._launcher.spawn(request)
        except EngineStartError as error:
            return error.message
        try:
            async with asyncio.timeout(self._timeout_s):
                report = await process.wait_exited()
        except TimeoutError:
            lines = engine_log.tail(engine_log.read_end(self._log_path), 1)
            return f"it took longer than {self._timeout_s:g} s (install_timeout_s); the last that it said was: {lines}"
        finally:
            await run_to_the_end(process.stop(0))
            shutil.rmtree(self._scratch, ignore_errors=True)  # the keeper removes it; this is for one that was killed
        if report.exit_code == 0:
            return ""
        raised = _RAISED.match(report.reason)
        return raised[1] if raised else report.reason


def digest_of(python: str, requirements: Sequence[str]) -> str:
    """12 hexadecimal digits, others for another interpreter, other requirements, or another file that one names."""
    parts: list[object] = [FORMAT, os.path.realpath(python)]
    for requirement in requirements:
        parts.append(requirement)
        for word in requirement.split():
            path = word.removeprefix("file://")
            if path.startswith("/") and os.path.isfile(path):
                status = os.stat(path)
                parts.append((status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
