"""Decides which demo models to make, and makes them in processes beside each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from demo import embedder, facts, folders

WORKER_LIMIT_S = 900.0
"""Many times what the slowest model needs; beyond it something hangs."""
POLL_S = 0.2
STOP_GRACE_S = 5.0

LONGEST_FIRST = (facts.QWEN3_CHAT, facts.LLAMA_CHAT, facts.RERANKER, facts.BASE)


class MakingFailed(RuntimeError):
    """At least one demo model could not be made."""


def make_all(models_dir: Path, *, force: bool = False) -> None:
    """Makes the demo models that `models_dir` lacks (with `force`: also those that were made here before).

    Raises MakingFailed, with a reason for each model that could not be made; the others are in place.
    """
    started = time.monotonic()
    missing = [name for name in facts.ALL_MODELS if _is_wanted(name, models_dir / name, force)]
    if not missing:
        return
    problems: list[str] = []
    with folders.work_folder(models_dir) as work:
        if facts.EMBEDDER in missing:
            _copy_embedder(work / "embedder")
        problems += _train(missing, models_dir, work)
        for name in missing:
            made = work / _flat(name)
            if not made.is_dir():
                continue
            folders.mark(made)
            if not folders.publish(made, models_dir / name):
                problems.append(f"{name}: {models_dir / name} appeared meanwhile, and is left as it is")
    elapsed_s = time.monotonic() - started
    print(f"demo models in {models_dir}: {len(missing)} wanted, done in {elapsed_s:.0f} s", flush=True)
    if problems:
        raise MakingFailed("\n".join(problems))


def _is_wanted(name: str, folder: Path, force: bool) -> bool:
    """Whether a model is to be made; says why where it is not."""
    if not folder.exists():
        return True
    if force and folders.is_ours(folder):
        return True
    if not folders.is_complete(folder):
        print(f"{name}: {folder} is there without its weights, and not made here: left as it is", file=sys.stderr)
    elif folders.is_ours(folder):
        print(f"{name}: already made, kept (--force makes it again)", flush=True)
    else:
        print(f"{name}: {folder} is the user's own, left as it is", flush=True)
    return False


def _copy_embedder(work: Path) -> None:
    try:
        embedder.make(work)
    except embedder.NotInstalled as error:
        print(str(error), file=sys.stderr)
        shutil.rmtree(work, ignore_errors=True)
    else:
        print(f"{facts.EMBEDDER}: copied from the installed package", flush=True)


def _train(missing: list[str], models_dir: Path, work: Path) -> list[str]:
    """Trains the missing models, as many beside each other as there are cores; returns what went wrong."""
    stop = Event()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(max_workers=cores) as pool:
        jobs: list[Future[str | None]] = []
        try:
            for name in LONGEST_FIRST:
                if name in missing:
                    jobs.append(pool.submit(_run_jobs, name, missing, models_dir, work, stop))
            if facts.ADAPTER in missing and facts.QWEN3_CHAT not in missing:
                jobs.append(pool.submit(_run, facts.ADAPTER, work, stop, models_dir / facts.QWEN3_CHAT))
            return [problem for job in jobs if (problem := job.result()) is not None]
        finally:
            stop.set()  # after an interruption: the workers end, and the pool with them


def _run_jobs(name: str, missing: list[str], models_dir: Path, work: Path, stop: Event) -> str | None:
    problem = _run(name, work, stop)
    if problem is None and name == facts.QWEN3_CHAT and facts.ADAPTER in missing:
        return _run(facts.ADAPTER, work, stop, work / _flat(name))
    return problem


def _run(name: str, work: Path, stop: Event, *arguments: Path) -> str | None:
    """Makes one model in a process of its own; returns what went wrong."""
    if stop.is_set():
        return f"{name}: interrupted"
    folder = work / _flat(name)
    _say(f"{name}: being made")
    started = time.monotonic()
    command = [sys.executable, "-m", "demo.worker", name, str(folder), *map(str, arguments)]
    process = subprocess.Popen(command, env=_worker_environment(), stdin=subprocess.DEVNULL)
    try:
        code = _wait(process, stop)
    finally:
        _end(process)
    if code != 0:
        shutil.rmtree(folder, ignore_errors=True)
        return f"{name}: its worker ended with {code}; its reason is above"
    _say(f"{name}: made in {time.monotonic() - started:.0f} s")
    return None


def _wait(process: subprocess.Popen[bytes], stop: Event) -> int | str:
    deadline = time.monotonic() + WORKER_LIMIT_S
    while time.monotonic() < deadline:
        try:
            return process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                return "an interruption"
    return f"more than {WORKER_LIMIT_S:.0f} s spent"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _worker_environment() -> dict[str, str]:
    """This process's environment, in which `demo` is found and nothing is looked up on the network."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _say(line: str) -> None:
    """Prints a line at once and in one piece: several threads and workers do."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _flat(name: str) -> str:
    return "embedder" if name == facts.EMBEDDER else name.replace("/", "-")
