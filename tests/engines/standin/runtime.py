"""The stand-in in a launcher: it takes vLLM's command line, of which it reads what it needs."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path

from aiohttp import web

from engines.runtime.protocol import EngineRequest
from tests.engines.standin import device
from tests.engines.standin.core import Core, Fault
from tests.engines.standin.server import make_app


def preload() -> None:
    pass


def cuda_initialized() -> bool:
    return False


def run_engine(request: EngineRequest) -> None:
    if request.only_check:  # of its arguments
        return
    parser = argparse.ArgumentParser(prog=request.name)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    parser.add_argument("--enable-sleep-mode", action="store_true")
    parser.add_argument("--standin-faults", nargs="+", type=Fault, default=[])
    parser.add_argument("--standin-token-s", type=float, default=0.0)
    parser.add_argument("--standin-start-s", type=float, default=0.0)
    args, _ = parser.parse_known_args([str(arg) for arg in request.args])
    time.sleep(args.standin_start_s)
    core = Core(
        model=args.served_model_name[0],
        weights_bytes=sum(path.stat().st_size for path in args.model.glob("*.safetensors")),
        kv_bytes=args.kv_cache_memory_bytes,
        frees_memory=args.enable_sleep_mode,
        faults=frozenset(args.standin_faults),
        report=lambda count: device.report(request.log_path, count),
    )
    dev_mode = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
    lora = args.enable_lora and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1"
    app = make_app(core, args.served_model_name, args.standin_token_s, dev_mode=dev_mode, lora=lora)
    asyncio.run(serve(request, app))


async def serve(request: EngineRequest, app: web.Application) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    try:
        await runner.setup()
        await web.UnixSite(runner, request.uds).start()
        request.ready()
        await stopped.wait()
    finally:
        await runner.cleanup()
