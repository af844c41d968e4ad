"""Models served by vLLM: one launcher that has imported it, and for each model its own OpenAI server below it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from engines import vllm_lora, vllm_sleep
from engines.base import Engine, EngineContext, EngineFactory, Verdict
from engines.launcher import Launcher
from engines.process import engine_files
from engines.progress import vllm_questions
from engines.runtime.protocol import EngineRequest
from engines.sleeping import DeviceSizes
from engines.vllm_adapters import RunningAdapters, SleepableVllmEngine, VllmEngine
from engines.vllm_args import ServeArgs, is_unusual, serve_args
from engines.vllm_args import refusal as refusal_of
from engines.vllm_checks import StartChecks
from engines.vllm_memory import estimate_bytes, loaded_weights_bytes
from engines.vllm_sleep import VllmSleepRoutes, tiers
from models.types import Availability, ModelSpec, Task

RUNTIME = "engines.runtime.vllm_runtime"
# vLLM's EngineDeadError in JSON, which its server writes in two ways. An answer that quotes it has its quotes escaped.
LAST_WORDS = (b'"message": "EngineCore encountered an issue', b'"message":"EngineCore encountered an issue')
SERVED_TASKS = frozenset({Task.CHAT, Task.COMPLETION})


def create_factory(context: EngineContext) -> EngineFactory:
    """The entry point `roundhouse.engines`: vllm."""
    return VllmFactory(context)


class VllmFactory:
    """See engines.base.EngineFactory. A package may make of it an engine of its own (adapters/deepseek_ocr does)."""

    name = "vllm"
    environment: ClassVar[Mapping[str, str | None]] = {}  # besides launcher_changes

    def __init__(self, context: EngineContext, runtime: str = RUNTIME) -> None:
        self._context = context
        self._launcher = Launcher(self.name, runtime, context, env={**launcher_changes(context), **self.environment})
        self._checks = StartChecks(
            self._launcher, context, lambda spec: is_unusual(spec, context), lambda spec: self.explain(spec).args
        )

    def accepts(self, spec: ModelSpec) -> Verdict:
        if spec.task is Task.ADAPTER:
            refusal = vllm_lora.adapter_refusal(spec.path)
            return Verdict(not refusal, refusal or "vLLM serves it beside its base")
        if spec.task not in SERVED_TASKS:
            return Verdict(False, f"vLLM serves chat and completion here, not {spec.task}")
        if spec.availability is not Availability.AVAILABLE:
            return Verdict(False, f"the model is {spec.availability}")
        if refusal := refusal_of(spec, self._context):
            return Verdict(False, refusal)
        return Verdict(True, f"vLLM serves {spec.task}")

    def prepared(self, spec: ModelSpec) -> bool:
        return self._checks.passed(spec)

    async def prepare(self, spec: ModelSpec) -> None:
        await self._checks.check(spec)

    def preparing(self, spec: ModelSpec) -> str:
        return "vLLM looks at its arguments"

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return estimate_bytes(spec, self._context, vllm_lora.arguments(spec, self._context, adapters).device_bytes)

    def explain(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> ServeArgs:
        """The command line that `spec` would get, and why; reads the chat template. Raises BadEngineArgument."""
        return serve_args(spec, self._context, adapters)

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        try:
            return self.explain(spec, adapters).reasons
        except (OSError, ValueError) as error:
            return (f"cannot be started: {error}",)

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Engine:
        uds, log_path = engine_files(self._context, self.name, spec.id)
        levels = self.sleep_levels(spec, adapters)
        running = RunningAdapters(spec, uds, adapters, lambda found: self._lora_rank(spec, found))

        def request() -> EngineRequest:
            args = self.explain(spec, adapters).args
            running.begin(rank := vllm_lora.started_rank(args))
            return EngineRequest(
                name=f"vllm {spec.id}",
                uds=str(uds),
                model_path=str(spec.path),
                log_path=str(log_path),
                vital="VLLM::",
                served_names=(spec.id, *spec.aliases),
                args=list(args),
                env=(vllm_sleep.ENVIRONMENT if levels else {}) | ({} if rank is None else vllm_lora.ENVIRONMENT),
            )

        def sizes() -> DeviceSizes:
            return DeviceSizes(loaded_weights_bytes(spec, self._context), self.explain(spec, adapters).kv_cache_bytes)

        process = (self._launcher, request, uds, self._context.device, vllm_questions(spec.id))
        if not levels:
            return VllmEngine(running, *process, last_words=LAST_WORDS)
        routes = VllmSleepRoutes(uds, running.names)
        return SleepableVllmEngine(running, *process, levels=levels, routes=routes, sizes=sizes, last_words=LAST_WORDS)

    def _lora_rank(self, spec: ModelSpec, adapters: Sequence[ModelSpec]) -> int | None:
        return vllm_lora.started_rank(self.explain(spec, adapters).args)

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return tiers(spec, self._context.device, bool(adapters), self._context.engine_args).levels

    async def start(self) -> None:
        await self._launcher.start()

    def state(self) -> Mapping[str, Any]:
        return self._launcher.state()

    async def close(self) -> None:
        await self._checks.close()
        await self._launcher.close()


def physical_cores(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that this process may use, hyper-threads not counted; all CPUs where the kernel does not say."""
    usable = os.sched_getaffinity(0)
    try:
        return len({(cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in usable})
    except OSError:
        return len(usable)


def launcher_changes(context: EngineContext) -> dict[str, str | None]:
    """vLLM's environment: no traffic but ours, caches where they are kept, and no settings of the shell's user."""
    return {
        "VLLM_CACHE_ROOT": str(context.cache_dir / "vllm"),
        "TRITON_CACHE_DIR": str(context.cache_dir / "triton"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_MAX_N_SEQUENCES": "128",  # OpenAI's limit of n; vLLM's own is 16384, each with a KV cache of its own
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # an allowed domain must not send us to another
        # Bound to cores, as by default, every resident model would sit on the same ones. Unbound, one core is left to
        # vLLM's scheduler all the same, as its own default does.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **({"OMP_NUM_THREADS": str(max(1, physical_cores() - 1))} if context.device == "cpu" else {}),
        "VLLM_API_KEY": None,  # the router has the keys; an engine that asked for one would refuse it
        "VLLM_SERVER_DEV_MODE": None,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": None,
        "VLLM_CPU_KVCACHE_SPACE": None,  # would override the bytes that we ask for
        "VLLM_WORKER_MULTIPROC_METHOD": None,
    }
