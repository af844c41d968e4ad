"""What LoRA adapters cost that come and go while their base serves: to the first token, and to the base.

Ours: a folder with one adapter, whose base is loaded for it; then others are put into the folder, each is asked once
(which puts it into the engine), then two of them in turn, and the base itself, one request at a time. Then all of them
are asked at random by several clients at once, and the loads of the base are counted: one for the first request.
Baseline: vLLM's own server, which is given all adapters at its start, asked in the same way.

    python -m bench.lora [--adapters 20] [--clients 8] [--requests 10] [--runs 15]

Last line: `switch_ms=` the first token of the other of two adapters beyond one of the base, medians (`vllm_switch_ms=`
the same of the baseline); `first_use_ms=` that of an adapter that is put in for it, beyond the base, median, and
`first_use_max_ms=`; `reloads=` of the base; `requests_per_s=` at random, and `vllm_requests_per_s=`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import _report
from bench._adapters import make_adapter
from bench._servers import START_TIMEOUT_S, Server, demo_models, plain_vllm, roundhouse, scratch_folder
from demo.facts import ADAPTER, QWEN3_CHAT, WHICH_MODEL

KV_CACHE_BYTES = 128 * 2**20
LISTED_TIMEOUT_S = 30.0
SEED = 11
ROUNDS = 3
SLOTS = 8  # that vLLM's own server gets: as many as ours


@dataclass
class Figures:
    """Of one server, in seconds, and of each round at random, requests per second."""

    plain_s: list[float] = field(default_factory=list)
    switch_s: list[float] = field(default_factory=list)
    requests_per_s: list[float] = field(default_factory=list)

    @property
    def switch_ms(self) -> float:
        return 1000 * (median(self.switch_s) - median(self.plain_s))


def ask_in_turn(server: Server, adapters: list[str], runs: int, figures: Figures) -> None:
    """First tokens of the base, and of two adapters that take turns."""
    for run in range(runs):
        figures.plain_s.append(server.first_token_s(QWEN3_CHAT, WHICH_MODEL))
        figures.switch_s.append(server.first_token_s(adapters[run % 2], WHICH_MODEL))


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


def wait_listed(server: Server, names: list[str]) -> None:
    deadline = time.monotonic() + LISTED_TIMEOUT_S
    while not set(names) <= {entry["id"] for entry in server.get("/v1/models")["data"]}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {len(names)} adapters were found within {LISTED_TIMEOUT_S} s")
        time.sleep(0.02)


def loads(server: Server) -> int:
    return int(server.get(f"/v1/models/{QWEN3_CHAT}")["loads"])


@contextmanager
def vllm_with(models: Path, folder: Path, scratch: Path, adapters: list[str]) -> Iterator[Server]:
    """vLLM's own server with all adapters from its start, each of them used once."""
    arguments = ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES), "--enable-lora", "--max-loras", str(SLOTS)]
    arguments += ["--max-cpu-loras", str(2 * len(adapters))]
    arguments += ["--lora-modules", *(f"{name}={folder / name}" for name in adapters)]
    with plain_vllm(models / QWEN3_CHAT, QWEN3_CHAT, scratch, *arguments) as server:
        server.wait_until("/health", START_TIMEOUT_S)
        for name in (QWEN3_CHAT, *adapters):
            server.first_token_s(name, WHICH_MODEL)
        yield server


def measure(models: Path, scratch: Path, options: argparse.Namespace) -> tuple[Figures, Figures, list[float], int]:
    """(ours, vLLM's, first tokens of adapters that were put in for them, how often our base was loaded again)."""
    folder, mine, plain = scratch / "models", Figures(), Figures()
    shutil.copytree(models / QWEN3_CHAT, folder / QWEN3_CHAT)
    adapters = [make_adapter(models / ADAPTER, folder, "adapter-0")]
    with roundhouse(folder, scratch, kv_cache_bytes=KV_CACHE_BYTES) as ours:
        ours.wait_warm(("vllm",))
        ours.first_token_s(adapters[0], WHICH_MODEL)
        ours.first_token_s(QWEN3_CHAT, WHICH_MODEL)
        before = loads(ours)
        adapters += [make_adapter(models / ADAPTER, folder, f"adapter-{n}") for n in range(1, options.adapters)]
        wait_listed(ours, adapters)
        first_uses = [ours.first_token_s(name, WHICH_MODEL) for name in adapters[1:]]
        with vllm_with(models, folder, scratch, adapters) as vllms:
            # In turn, so that a change in the machine's speed meets both.
            for _ in range(ROUNDS):
                for server, figures in ((ours, mine), (vllms, plain)):
                    ask_in_turn(server, adapters, options.runs, figures)
                    rate = ask_at_random(server, adapters, options.clients, options.requests)
                    figures.requests_per_s.append(rate)
        return mine, plain, first_uses, loads(ours) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=10, help="of each client and round")
    parser.add_argument("--runs", type=int, default=15, help="of each round")
    options = parser.parse_args()
    models = demo_models()
    with scratch_folder() as scratch:
        mine, plain, first_uses, reloads = measure(models, scratch, options)
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
        "switch_ms": mine.switch_ms,
        "vllm_switch_ms": plain.switch_ms,
        "first_use_ms": 1000 * (median(first_uses) - base_s),
        "first_use_max_ms": 1000 * (max(first_uses) - base_s),
        "reloads": reloads,
        "requests_per_s": median(mine.requests_per_s),
        "vllm_requests_per_s": median(plain.requests_per_s),
    }
    _report.print_figures(figures)


if __name__ == "__main__":
    main()
