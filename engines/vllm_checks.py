"""Has vLLM look at unusual arguments before anything leaves the device for a start that would fail.

What we derive is checked by tests. What the configuration says, and drafts and several GPUs, goes through vLLM's own
parser and configuration, in a process forked from the launcher as an engine is, which then ends: a second or two, once
for each content of the configuration and the folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from engines.base import EngineContext, EngineStartError
from engines.launcher import Launcher
from engines.process import SCRATCH_SUFFIX, engine_files
from engines.runtime.protocol import EngineRequest
from models.types import ModelSpec

log = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 120.0  # from the fork; a check that takes longer says nothing, and the load itself decides


class StartChecks:
    """One for each factory. `unusual` says which models need a look, `arguments` what they are started with."""

    def __init__(
        self,
        launcher: Launcher,
        context: EngineContext,
        unusual: Callable[[ModelSpec], bool],
        arguments: Callable[[ModelSpec], Sequence[str]],
    ) -> None:
        self._launcher = launcher
        self._context = context
        self._unusual = unusual
        self._arguments = arguments
        self._passed: dict[str, ModelSpec] = {}
        self._refused: dict[str, tuple[ModelSpec, str]] = {}
        self._running: dict[str, tuple[ModelSpec, asyncio.Task[None]]] = {}

    def passed(self, spec: ModelSpec) -> bool:
        known = self._passed.get(spec.id)
        if known is spec or known == spec:
            return True
        if not self._unusual(spec):
            self._passed[spec.id] = spec
            return True
        return False

    def refusal(self, spec: ModelSpec) -> str:
        """What a check of `spec` found, "" where it found nothing or was not made."""
        known = self._refused.get(spec.id)
        return known[1] if known is not None and known[0] == spec else ""

    async def check(self, spec: ModelSpec) -> None:
        """Returns when `spec` may be tried. Raises EngineStartError. Any number may wait for the same check."""
        if not self.passed(spec) and not self.refusal(spec):
            of, task = self._running.get(spec.id, (None, None))
            if task is None or of != spec:
                task = asyncio.create_task(self._check(spec), name=f"check of {spec.id}")
                self._running[spec.id] = (spec, task)
            await asyncio.shield(task)
        if refusal := self.refusal(spec):
            raise EngineStartError(refusal)

    async def close(self) -> None:
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, spec: ModelSpec) -> None:
        try:
            refusal = await self._ask(spec)
        except (EngineStartError, TimeoutError, OSError) as error:  # it says nothing of the arguments
            log.warning("the arguments of %s could not be checked: %s", spec.id, error or "it took too long")
            refusal = ""
        except ValueError as error:
            refusal = str(error)
        if refusal:
            self._refused[spec.id] = (spec, refusal)
        else:
            self._passed[spec.id] = spec
        self._running.pop(spec.id, None)

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
