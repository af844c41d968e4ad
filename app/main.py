"""Puts the app together and serves it: `python -m app.main`, or `roundhouse serve`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from app.asgi import Bodies
from app.auth import HostCheck, KeyRing, OriginCheck, check_bind
from app.config import ConfigError, Settings, load_settings
from app.event_stream import EventStream
from app.gate import Access, Gate
from app.kserve.endpoint import KServe
from app.lazy import Asgi, LazyApp
from app.lifecycle import Lifecycle, MakeWatcher, OnChange, Scans, Watches
from app.memory import Device, measure_device
from app.proxy import DataPlane
from app.run_dir import RunDir
from app.server import DrainingServer, bind, server_config
from app.state import AppState
from app.upstream import Upstreams
from app.websocket.endpoint import WebSockets
from engines.base import Declaration, EngineContext, ListsModels
from engines.registry import Engines, create_factories, registered_architectures
from models.catalog import Catalog
from models.discovery.scanner import Scanner
from models.fetching.fetcher import Fetcher
from models.fetching.paths import AdapterPaths
from models.manager import ModelManager
from models.sources import Sources
from utils.access_log import AccessLog
from utils.logging import logger, set_up_logging
from utils.telemetry import Metrics, ModelGauge, ServerGauge, Snapshot

EXIT_CONFIG = 2
EXIT_BIND = 1
S3 = "S3 storage"
BODIES_HELD = 8  # times max_body_bytes, of all requests together


@dataclass(frozen=True, slots=True)
class Roundhouse:
    """The ASGI app and what is behind it."""

    app: Gate
    lifecycle: Lifecycle
    state: AppState


def serve(settings: Settings) -> int:
    """Serves until a TERM or INT signal; returns the exit code.

    Raises ConfigError (bind rule, keys) and OSError (address in use) before anything was started.
    """
    set_up_logging(settings.log_format, settings.log_level)
    keys = KeyRing(settings.keys())
    check_bind(settings.host, keys, settings.allow_anonymous)
    with bind(settings) as listener:
        run_dir = _run_dir()
        try:
            host, port = listener.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            logger.info("Roundhouse on http://{}:{}/v1, models from {}", where, port, settings.models_dir.absolute())
            roundhouse = build(settings, run_dir.path)
            DrainingServer(server_config(roundhouse.app, settings), roundhouse.lifecycle).run([listener])
        finally:
            run_dir.close()
    return 0


def build(
    settings: Settings,
    run_dir: Path,
    *,
    engines: Engines | None = None,
    scanner: Scans | None = None,
    make_watcher: MakeWatcher | None = None,
) -> Roundhouse:
    """The whole app, cold. Tests give engines, a scanner and a watcher of their own."""
    _make_folders(settings)
    device = _device(settings)
    engines = engines or create_factories(_context_for(settings, run_dir, device), settings.declarations())
    for name, why in engines.errors.items():
        logger.error("Engine {} cannot be used: {}", name, why)
    for name in settings.engines.keys() - engines.factories.keys() - engines.errors.keys():
        logger.warning("The configuration of engine {} has no effect: no such engine is installed", name)
    manager = ModelManager(
        catalog=Catalog(),
        factories=engines.factories,
        policy=settings.policy(device.sleep_bytes),
        budget_bytes=device.budget_bytes,
        state_dir=settings.state_dir,
        preload=settings.preload,
        hang_timeout_s=settings.hang_timeout_s,
    )
    metrics = Metrics(lambda: _snapshot(manager))
    sources = Sources(manager.catalog, settings.overrides(), (S3, *engines.factories))
    fetcher = Fetcher(settings.state_dir / "adapters", partial(sources.put, S3), int(settings.max_adapter_bytes))
    paths = AdapterPaths(manager.catalog, settings.models_dir, fetcher, manager.check)
    state = AppState(settings, manager, metrics, engines.errors, device, paths)
    upstreams = Upstreams(settings.upstream_connect_timeout_s, settings.upstream_idle_timeout_s)
    folder = folder_scanner(settings)
    make_watcher = make_watcher or partial(_folder_watcher, settings, folder)
    control = LazyApp(partial(_control_app, state))
    for name, factory in engines.factories.items():
        if isinstance(factory, ListsModels):
            factory.follow(partial(sources.put, name))
    lifecycle = Lifecycle(state, scanner or folder, make_watcher, upstreams, control, sources, fetcher)
    return Roundhouse(_gate(settings, state, lifecycle, upstreams, control), lifecycle, state)


def folder_scanner(settings: Settings) -> Scanner:
    """Of the models folder, by the configuration and by what installed packages say that they serve."""
    architectures, faults = registered_architectures()
    for fault in faults:
        logger.warning("{}", fault)
    return Scanner(settings.models_dir, settings.overrides(), architectures)


def _folder_watcher(settings: Settings, folder: Scanner, on_change: OnChange) -> Watches:
    from models.discovery.watch import FolderWatcher

    return FolderWatcher(folder, on_change, poll_s=settings.poll_s if settings.watch == "poll" else None)


def _control_app(state: AppState) -> Asgi:
    from app.api.build import build_control_app  # imports FastAPI, which takes longer than everything else here

    return build_control_app(state)


def _gate(settings: Settings, state: AppState, lifecycle: Lifecycle, upstreams: Upstreams, control: LazyApp) -> Gate:
    max_body_bytes = int(settings.max_body_bytes)
    bodies = Bodies(max_body_bytes, BODIES_HELD * max_body_bytes, settings.request_read_timeout_s)
    keys, hosts = KeyRing(settings.keys()), HostCheck(settings.host, settings.allowed_hosts)
    access = Access(keys, hosts, OriginCheck(settings.cors_origins, hosts.names_us if keys.open else None))
    return Gate(
        access=access,
        data_plane=DataPlane(state, upstreams, bodies),
        kserve=KServe(state, upstreams, bodies),
        events=EventStream(state),
        websockets=WebSockets(state, keys, bodies),
        control=control,
        state=state,
        lifespan=lifecycle.lifespan,
        bodies=bodies,
        access_log=AccessLog(settings.log_format) if settings.access_log else None,
    )


def _run_dir() -> RunDir:
    try:
        return RunDir()
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise ConfigError(f"No folder for sockets can be made ({why}). Make room there, or set TMPDIR.") from error


def _make_folders(settings: Settings) -> None:
    """Raises ConfigError where one cannot be made, or written to: no engine would start."""
    hint = f"Let user {os.getuid()} write to {settings.state_dir}, or set ROUNDHOUSE_STATE_DIR"
    for folder in (settings.state_dir, settings.state_dir / "logs", settings.state_dir / "cache"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The state folder {folder} cannot be made: {error.strerror}. {hint}.") from error
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"The state folder {folder} cannot be written to. {hint}.")


def _device(settings: Settings) -> Device:
    device = measure_device()
    if settings.memory_budget_bytes is not None:
        device = replace(device, budget_bytes=int(settings.memory_budget_bytes), why="memory_budget_bytes")
    logger.info("Device {}: {} MiB for models ({})", device.kind, device.budget_bytes >> 20, device.why)
    return device


def _context_for(settings: Settings, run_dir: Path, device: Device) -> Callable[[str], EngineContext]:
    kv_cache_bytes = None if settings.kv_cache_bytes is None else int(settings.kv_cache_bytes)
    declared = settings.declarations()

    def context(name: str) -> EngineContext:
        config = settings.engines.get(name)
        return EngineContext(
            run_dir=run_dir,
            log_dir=settings.state_dir / "logs",
            cache_dir=settings.state_dir / "cache",
            device=device.kind,
            engine_args=config.args if config else {},
            kv_cache_bytes=kv_cache_bytes,
            budget_bytes=device.budget_bytes,
            retrieval_bytes=int(settings.retrieval_share * device.budget_bytes),
            gpus=device.gpus,
            capability=device.capability,
            models_dir=settings.models_dir,
            name=name,
            declared=declared.get(name, Declaration()),
        )

    return context


def _snapshot(manager: ModelManager) -> Snapshot:
    memory = manager.memory()
    return Snapshot(
        models=[
            ModelGauge(status.id, status.state, status.running, status.queued, status.loads, status.memory_bytes)
            for status in manager.statuses()
        ],
        budget_bytes=memory.budget_bytes,
        charged_bytes=memory.charged_bytes,
        servers=[
            ServerGauge(name, server["host"], server["state"], server["running"])
            for name, factory in manager.factories.items()
            for server in factory.state().get("servers", ())
        ],
    )


def main() -> int:
    """Serves by environment and file alone; `roundhouse serve` has options and the same effect."""
    try:
        return serve(load_settings())
    except ConfigError as error:
        print(f"roundhouse: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except OSError as error:
        print(f"roundhouse: cannot listen: {error}", file=sys.stderr)
        return EXIT_BIND


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
