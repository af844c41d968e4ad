"""vLLM in a launcher: what to import before the fork, and vLLM's own OpenAI server after it, unmodified.

What is changed in vLLM stands in functions of their own: `keep_forking_on_cpu`, which changes what it does;
`announce_when_accepting`, `import_architectures` and `register_cpu_kernels_once`, which change when; and
`leave_base_tokens_alone` of vllm_lora_cpu, which mends it. All touch only this process and those forked from it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from engines.runtime.protocol import EngineRequest
from engines.runtime.vllm_lora_cpu import leave_base_tokens_alone

START_METHOD_VARIABLE = "VLLM_WORKER_MULTIPROC_METHOD"

# vLLM's OpenAI server and its command line: as 0.32 has them, and as 0.25.
_SERVERS = (
    ("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.launchers.cli_args"),
    ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.openai.cli_args"),
)

# Imported by vLLM itself only once it serves or builds an engine; 0.05 to 2 s each on the way to a first token.
_PRELOADED = (
    "uvloop",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
)
# Worth tens of milliseconds each, and left to vLLM where a release no longer has them.
_PRELOADED_IF_THERE = (
    "anyio._backends._asyncio",
    "model_hosting_container_standards.common.custom_code_ref_resolver",
    "model_hosting_container_standards.sagemaker",
    "setproctitle",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.generate.structured_decisions.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.scale_out.derender.api_router",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router",
    "vllm.entrypoints.serve.elastic_ep.api_router",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.instrumentator.offline_docs",
    "vllm.entrypoints.serve.profile.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.gemma3",
    "vllm.model_executor.models.gpt_oss",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.mistral",
    "vllm.model_executor.models.phi3",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.qwen3_moe",
    "vllm.renderers.hf",
    "vllm.tool_parsers.hermes_tool_parser",
    "vllm.tool_parsers.llama_tool_parser",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.pool.flash_maxsim",
)
_PRELOADED_ON_CPU = ("vllm.v1.worker.cpu_worker", "vllm.v1.attention.backends.cpu_attn")
_PRELOADED_ON_CUDA = ("vllm.v1.worker.gpu_worker",)


def preload() -> None:
    """Imports vLLM and what it would import later. Needs OPENBLAS_NUM_THREADS=1 to stay single-threaded."""
    from vllm.platforms import current_platform

    _server_modules()
    device = _PRELOADED_ON_CPU if current_platform.is_cpu() else _PRELOADED_ON_CUDA
    for name in (*_PRELOADED, *device):
        importlib.import_module(name)
    for name in _PRELOADED_IF_THERE:
        with suppress(ImportError):
            importlib.import_module(name)
    # Each of vLLM's processes does this once, and not again where it was done before the fork.
    importlib.import_module("vllm.plugins").load_general_plugins()
    register_cpu_kernels_once()
    if current_platform.is_cpu():
        leave_base_tokens_alone()


def cuda_initialized() -> bool:
    """By torch's own account, or by a device file that only a CUDA context (not NVML) opens."""
    import torch

    initialized = bool(torch.cuda.is_initialized())
    return initialized or "/dev/nvidia-uvm" in _open_files()


def _open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(Path("/proc/self/fd") / fd))
    return found


def run_engine(request: EngineRequest) -> None:
    """Serves `request` until SIGTERM with vLLM's server; `request.args` is its command line, less --uds.

    `request.only_check`: returns once vLLM has made its configuration of them, and taken the folder's.
    """
    import uvloop
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    server, command_line = _server_modules()
    keep_forking_on_cpu()
    announce_when_accepting(request.ready)
    import_architectures(Path(request.model_path))
    parser = command_line.make_arg_parser(FlexibleArgumentParser(prog=request.name))
    args = parser.parse_args([*map(str, request.args), "--uds", request.uds])
    logger: Any = importlib.import_module("vllm.logger")
    if hasattr(logger, "configure_logging_from_args"):  # not in 0.25
        logger.configure_logging_from_args(args)
    command_line.validate_parsed_serve_args(args)
    if request.only_check:
        check(args)
        return
    uvloop.run(server.run_server(args))


def check(args: Any) -> None:
    """What vLLM does with parsed arguments before it takes the device; raises as it does."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    tools, reasoning = args.tool_call_parser, args.structured_outputs_config.reasoning_parser
    for kind, name, manager in (
        ("tool call", tools, ToolParserManager),
        ("reasoning", reasoning, ReasoningParserManager),
    ):
        known: list[str] = manager.list_registered()
        if name and name not in known:
            raise ValueError(f"invalid {kind} parser: {name} (chose from {', '.join(sorted(known))})")
    AsyncEngineArgs.from_cli_args(args).create_engine_config()


def _server_modules() -> tuple[Any, Any]:
    """vLLM's server and its command line, wherever this release keeps them. Raises ImportError."""
    for names in _SERVERS:
        try:
            server, command_line = map(importlib.import_module, names)
        except ModuleNotFoundError as error:
            if error.name is None or not names[0].startswith(error.name):
                raise  # it is there, and lacks something itself
        else:
            return server, command_line
    raise ImportError("this vLLM keeps its OpenAI server where Roundhouse does not know; vLLM 0.25 to 0.32 are known")


def keep_forking_on_cpu() -> None:
    """The one CPU adjustment, right after vLLM's CPU platform has checked the configuration, of two of its changes.

    It makes vLLM's own processes start by spawn, which imports everything again: set back to fork. That is safe here,
    as nothing has run a parallel region (and so started OpenMP's threads) before vLLM starts its processes.

    It puts a single worker into a process of its own, because OpenMP's environment could not be set otherwise: set
    back to the engine core's process, as on a GPU. Our launcher has set that environment, and what the two would tell
    each other for every token takes half of the CPU time (on 2 cores: 2.5 s for 600 tokens against 5.8).
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    platform: Any = type(current_platform)
    original: Callable[..., None] = platform.check_and_update_config

    @functools.wraps(original)
    def check_and_update_config(vllm_config: Any) -> None:
        executor = vllm_config.parallel_config.distributed_executor_backend
        original(vllm_config)
        vllm_config.parallel_config.distributed_executor_backend = executor
        os.environ[START_METHOD_VARIABLE] = "fork"

    platform.check_and_update_config = staticmethod(check_and_update_config)


def register_cpu_kernels_once() -> None:
    """Does before the fork what each worker on a CPU without Triton does at its start, for half of its start's time.

    vLLM looks through the names of all modules for Triton's kernels, to put its own in their place. They stay in
    place, so that there is nothing left to do for those that are forked after it.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or not hasattr(current_platform, "register_triton_kernel_overrides"):
        return
    current_platform.register_triton_kernel_overrides()
    platform: Any = type(current_platform)
    platform.register_triton_kernel_overrides = staticmethod(lambda: None)


def import_architectures(model_path: Path) -> None:
    """Imports the model's class here, which a warm process does in milliseconds.

    vLLM itself would start another Python and import everything in it (10 s), to learn what the class can do without
    risking that its module initialises CUDA; it keeps the answer in its cache per class. Should a module do that, vLLM
    notices, and makes its own processes by spawn.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    for architecture in _architectures(model_path):
        lazy = ModelRegistry.models.get(architecture)
        if lazy is not None:
            ModelRegistry.register_model(architecture, lazy.load_model_cls())


def _architectures(model_path: Path) -> list[str]:
    """As the model's config.json says; none where it cannot be read, which vLLM will say better."""
    try:
        config = json.loads((model_path / "config.json").read_bytes())
    except (OSError, ValueError):
        return []
    names = config.get("architectures") if isinstance(config, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def announce_when_accepting(ready: Callable[[], None]) -> None:
    """`ready` is called when uvicorn, which vLLM serves with, listens on its socket."""
    import uvicorn

    original = uvicorn.Server.startup

    @functools.wraps(original)
    async def startup(self: uvicorn.Server, *args: Any, **kwargs: Any) -> None:
        await original(self, *args, **kwargs)
        if self.started:
            ready()

    uvicorn.Server.startup = startup  # type: ignore[method-assign]
