"""Engines that are a class of somebody's package (`class: package.module:Class` in the configuration).

Each runs in a process of its own, with the Python that the configuration names, or in an environment of its own where
it names requirements. Here its code is never imported.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engines.base import Engine, EngineContext, EngineStartError, Verdict
from engines.launcher import Launcher
from engines.plugins.environments import Environment
from engines.process import ProcessEngine, engine_files
from engines.progress import Questions
from engines.runtime.protocol import EngineRequest
from models.types import LoadReport, ModelSpec, Task

RUNTIME_MODULE = "engines.runtime.plugin_runtime"
OVERHEAD_BYTES = 256 << 20  # a Python with a framework, before anything was measured
_LOGIN = re.compile(r"://[^/\s@]+@")  # in an address
NOT_SERVED = frozenset({Task.ADAPTER, Task.UNSUPPORTED})


class PluginFactory:
    """One declared engine. Nothing of it runs before one of its models is first asked for."""

    def __init__(self, context: EngineContext) -> None:
        declared = context.declared
        assert declared.class_path is not None
        self.name = context.name
        self._context = context
        self._class_path = declared.class_path
        self._given_python = declared.python or sys.executable
        self._python = shutil.which(self._given_python)
        env = {
            "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS"),  # only launchers must have one thread
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }
        self._launcher = Launcher(self.name, RUNTIME_MODULE, context, env=env)
        self._environment: Environment | None = None
        if declared.requirements and self._python is not None:
            self._environment = Environment(context, self._python, self._launcher)

    def accepts(self, spec: ModelSpec) -> Verdict:
        if spec.task in NOT_SERVED:
            return Verdict(False, f"{self._class_path} serves no model for {spec.task.value}")
        if self._python is None:
            return Verdict(False, f"engines.{self.name}.python: there is no interpreter {self._given_python}")
        if self._environment is not None and not self._context.declared.install and not self._environment.is_there():
            return Verdict(
                False,
                f"the engine '{self.name}' needs an environment of its own, and nothing may be installed: set "
                "allow_install: true (ROUNDHOUSE_ALLOW_INSTALL=true) to have its requirements installed on first use",
            )
        return Verdict(True, f"{self._class_path} serves it")

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        environment = self._environment
        if environment is None:
            return (f"{self._class_path} runs in a process of its own, by {self._given_python}",)
        wanted = _LOGIN.sub("://****@", ", ".join(self._context.declared.requirements))  # every client may read this
        return (
            f"{self._class_path} runs in an environment of its own, {environment.folder}: {environment.state()}",
            f"its requirements: {wanted}",
        )

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return spec.weights_bytes + OVERHEAD_BYTES

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Engine:
        uds, log_path = engine_files(self._context, self.name, spec.id)

        def request() -> EngineRequest:
            return EngineRequest(
                name=f"{self.name} {spec.id}",
                uds=str(uds),
                model_path=str(spec.path),
                log_path=str(log_path),
                served_names=(spec.id, *spec.aliases),
                args={
                    "python": self._interpreter(),
                    "class_path": self._class_path,
                    "path": self._context.declared.path or "",
                    "engine_args": {**self._context.engine_args, **spec.overrides.engine_args},
                },
            )

        return PluginEngine(self._launcher, request, uds, self._context.device, Questions("/engine/progress", float))

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return ()

    def prepared(self, spec: ModelSpec) -> bool:
        return self._environment is None or self._environment.is_there()

    async def prepare(self, spec: ModelSpec) -> None:
        """Makes the environment. Raises EngineUnavailable."""
        if self._environment is not None:
            await self._environment.make()

    def preparing(self, spec: ModelSpec) -> str:
        return self._environment.doing() if self._environment is not None else ""

    async def start(self) -> None:
        """Its launcher waits for the first load: it has nothing to import."""

    def state(self) -> Mapping[str, Any]:
        state = self._launcher.state()
        environment = self._environment
        if environment is None:
            return state
        shown = {"environment": environment.folder.name, "environment_state": environment.state()}
        if doing := environment.doing():
            shown["environment_detail"] = doing
        return {**state, **shown, "old_environments": environment.others()}

    async def close(self) -> None:
        if self._environment is not None:
            await self._environment.close()
        await self._launcher.close()

    def _interpreter(self) -> str:
        """Raises EngineStartError."""
        environment = self._environment
        if environment is None:
            assert self._python is not None  # or it is not accepted
            return self._python
        if not environment.is_there():
            raise EngineStartError(f"the environment of the engine '{self.name}' is gone from {environment.folder}")
        return str(environment.python)


class PluginEngine(ProcessEngine):
    async def start(self, timeout_s: float) -> LoadReport:
        await self._launcher.start()
        return replace(await super().start(timeout_s), started_by="exec")


def create_factory(context: EngineContext) -> PluginFactory:
    """`class:` in the configuration."""
    return PluginFactory(context)
