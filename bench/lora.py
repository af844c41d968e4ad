"""What LoRA adapters cost that come and go while their base serves: to the first token, and to the base.

Ours: a folder with one adapter, whose base is loaded for it; then others are put into the folder, each is asked once
(which puts it into the engine), then two of them in turn, and the base itself, one request at a time. Then all of them
are asked at random by several clients at once, and the loads of the base are counted: one for the first request.
Baseline: vLLM's own server, which is given all adapters at its start, asked in the same way.

    python -m bench.lora [--adapters 20] [--clients 8] [--requests 25] [--runs 40]

Last line: `switch_ms=` the first token of the other of two adapters beyond one of the base, medians (`vllm_switch_ms=`
the same of the baseline); `first_use_ms=` that of an adapter that is put in for it, beyond the base, median, and
`first_use_max_ms=`; `reloads=` of the base; `requests_per_s=` at random, and `vllm_requests_per_s=`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import _report
from bench._adapters import make_adapter
from bench._servers import START_TIMEOUT_S, Server, demo_models, plain_vllm, roundhouse, scratch_folder
from demo.facts import ADAPTER, QWEN3_CHAT, WHICH_MODEL

KV_CACHE_BYTES = 128 * 2**20
LISTED_TIMEOUT_S = 30.0
SEED = 11
SLOTS = 8  # that vLLM's own server gets: as many as ours


@dataclass(frozen=True)
class Figures:
    """Of one server, in seconds but for `requests_per_s`."""

    plain_s: list[float]
    switch_s: list[float]
    requests_per_s: float


def ask_in_turn(server: Server, adapters: list[str], runs: int) -> tuple[list[float], list[float]]:
    """First tokens of the base, and of two adapters that take turns."""
    plain, switches = [], []
    for run in range(runs):
        plain.append(server.first_token_s(QWEN3_CHAT, WHICH_MODEL))
        switches.append(server.first_token_s(adapters[run % 2], WHICH_MODEL))
    return plain, switches


def ask_at_random(server: Server, adapters: list[str], clients: int, requests: int) -> float:
    """Requests per second of `clients`, each of which asks `requests` times for any of the adapters."""

    def client(number: int) -> None:
        chance = random.Random(SEED + number)
        for _ in range(requests):
            server.first_token_s(chance.choice(adapters), WHICH_MODEL)

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return clients * requests / (time.monotonic() - began)


def measured(server: Server, adapters: list[str], options: argparse.Namespace) -> Figures:
    plain, switches = ask_in_turn(server, adapters, options.runs)
    return Figures(plain, switches, ask_at_random(server, adapters, options.clients, options.requests))


def wait_listed(server: Server, names: list[str]) -> None:
    deadline = time.monotonic() + LISTED_TIMEOUT_S
    while not set(names) <= {entry["id"] for entry in server.get("/v1/models")["data"]}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {len(names)} adapters were found within {LISTED_TIMEOUT_S} s")
        time.sleep(0.02)


def ours(models: Path, folder: Path, scratch: Path, options: argparse.Namespace) -> tuple[Figures, list[float], int]:
    """Figures, first tokens of adapters that were put in for them, and how often the base was loaded again."""
    shutil.copytree(models / QWEN3_CHAT, folder / QWEN3_CHAT)
    adapters = [make_adapter(models / ADAPTER, folder, "adapter-0")]
    with roundhouse(folder, scratch, kv_cache_bytes=KV_CACHE_BYTES) as server:
        server.wait_warm(("vllm",))
        server.first_token_s(adapters[0], WHICH_MODEL)
        server.first_token_s(QWEN3_CHAT, WHICH_MODEL)
        loads = server.get(f"/v1/models/{QWEN3_CHAT}")["loads"]
        adapters += [make_adapter(models / ADAPTER, folder, f"adapter-{n}") for n in range(1, options.adapters)]
        wait_listed(server, adapters)
        first_uses = [server.first_token_s(name, WHICH_MODEL) for name in adapters[1:]]
        figures = measured(server, adapters, options)
        return figures, first_uses, server.get(f"/v1/models/{QWEN3_CHAT}")["loads"] - loads


def vllms(models: Path, folder: Path, scratch: Path, options: argparse.Namespace) -> Figures:
    names = [f"adapter-{number}" for number in range(options.adapters)]
    arguments = ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES), "--enable-lora", "--max-loras", str(SLOTS)]
    arguments += [
        "--max-cpu-loras",
        str(2 * len(names)),
        "--lora-modules",
        *(f"{name}={folder / name}" for name in names),
    ]
    with plain_vllm(models / QWEN3_CHAT, QWEN3_CHAT, scratch, *arguments) as server:
        server.wait_until("/health", START_TIMEOUT_S)
        for name in (QWEN3_CHAT, *names):
            server.first_token_s(name, WHICH_MODEL)
        return measured(server, names, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=25, help="of each client")
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    models = demo_models()
    with scratch_folder() as scratch:
        folder = scratch / "models"
        folder.mkdir()
        mine, first_uses, reloads = ours(models, folder, scratch, options)
        plain = vllms(models, folder, scratch, options)
    rows = [
        ("the base", *_report.summary(mine.plain_s)),
        ("the other of two adapters", *_report.summary(mine.switch_s)),
        ("an adapter that is put in for it", *_report.summary(first_uses)),
        ("vLLM's own server: the base", *_report.summary(plain.plain_s)),
        ("… the other of two adapters", *_report.summary(plain.switch_s)),
    ]
    _report.print_table(f"First tokens, {options.adapters} adapters, seconds", ("", "min", "median", "max"), rows)
    base_s = median(mine.plain_s)
    figures = {
        "switch_ms": 1000 * (median(mine.switch_s) - base_s),
        "vllm_switch_ms": 1000 * (median(plain.switch_s) - median(plain.plain_s)),
        "first_use_ms": 1000 * (median(first_uses) - base_s),
        "first_use_max_ms": 1000 * (max(first_uses) - base_s),
        "reloads": reloads,
        "requests_per_s": mine.requests_per_s,
        "vllm_requests_per_s": plain.requests_per_s,
    }
    _report.print_figures(figures)


if __name__ == "__main__":
    main()
