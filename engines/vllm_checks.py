"""Has vLLM look at unusual arguments before anything leaves the device for a start that would fail.

What we derive is checked by tests. What the configuration says, and drafts and several GPUs, goes through vLLM's own
parser and configuration, in a process forked from the launcher as an engine is, which then ends: a second or two, once
for each content of the configuration and the folder.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from engines.base import EngineContext, EngineStartError
from engines.engine_process import EngineNotGone
from engines.launcher import Launcher
from engines.process import SCRATCH_SUFFIX, engine_files
from engines.runtime.protocol import EngineRequest
from models.servable import must_reload
from models.types import ModelSpec

log = logging.getLogger(__name__)

REFUSED_S = 30.0  # then vLLM is asked again: it may have lacked memory, or a file that is there by now
CHECK_TIMEOUT_S = 120.0  # from the fork; a check that takes longer says nothing, and the load itself decides


class StartChecks:
    """One for each factory. `unusual` says which models need a look, `arguments` what they are started with."""

    def __init__(
        self,
        launcher: Launcher,
        context: EngineContext,
        unusual: Callable[[ModelSpec], bool],
        arguments: Callable[[ModelSpec], Sequence[str]],
        *,
        refused_s: float = REFUSED_S,
    ) -> None:
        self._launcher = launcher
        self._context = context
        self._unusual = unusual
        self._arguments = arguments
        self._refused_s = refused_s
        self._passed: dict[str, ModelSpec] = {}
        self._refused: dict[str, tuple[ModelSpec, str, float]] = {}  # until this time
        self._running: list[tuple[ModelSpec, asyncio.Task[str]]] = []

    def passed(self, spec: ModelSpec) -> bool:
        known = self._passed.get(spec.id)
        if known is spec:
            return True
        if (known is not None and not must_reload(known, spec)) or not self._unusual(spec):
            self._passed[spec.id] = spec
            return True
        return False

    async def check(self, spec: ModelSpec) -> None:
        """Returns when `spec` may be tried. Raises EngineStartError. Any number may wait for the same check."""
        if self.passed(spec):
            return
        of, refusal, until_s = self._refused.get(spec.id, (None, "", 0.0))
        if of != spec or time.monotonic() > until_s:
            task = next((task for of, task in self._running if of == spec), None)
            refusal = await asyncio.shield(task or self._begin(spec))
        if refusal:
            raise EngineStartError(refusal)

    async def close(self) -> None:
        tasks = [task for _, task in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, spec: ModelSpec) -> asyncio.Task[str]:
        task = asyncio.create_task(self._check(spec), name=f"check of {spec.id}")
        running = (spec, task)
        self._running.append(running)
        task.add_done_callback(lambda _: self._running.remove(running))
        return task

    async def _check(self, spec: ModelSpec) -> str:
        """Why it is refused, "" where it is not."""
        try:
            refusal = await self._ask(spec)
        except (EngineStartError, EngineNotGone, TimeoutError, OSError) as error:  # it says nothing of the arguments
            log.warning("the arguments of %s could not be checked: %s", spec.id, error or "it took too long")
            refusal = ""
        except (ValueError, TypeError) as error:  # of what the configuration says
            refusal = str(error)
        if refusal:
            self._refused[spec.id] = (spec, refusal, time.monotonic() + self._refused_s)
        else:
            self._passed[spec.id] = spec
        return refusal

    async def _ask(self, spec: ModelSpec) -> str:
        """Why vLLM would not start; "" where it would. Raises what says nothing of that."""
        uds, log_path = engine_files(self._context, f"{self._launcher.name}-check", spec.id)
        args = await asyncio.to_thread(self._arguments, spec)
        request = EngineRequest(
            name=f"check of {spec.id}", uds=str(uds), model_path=str(spec.path), log_path=str(log_path), only_check=True
        )
        request = replace(request, args=list(args), scratch=str(uds.with_suffix(SCRATCH_SUFFIX)))
        process = await self._launcher.spawn(request)
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                report = await process.wait_exited()
        finally:
            await asyncio.shield(process.stop(0))
        if report.exit_code:
            return f"vLLM refuses how it would be started: {report.reason} (log: {log_path})"
        if report.exit_code is None:
            raise EngineStartError(report.reason)
        return ""
