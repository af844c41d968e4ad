"""What swapping leaves behind: 20 swaps in a row, everything unloaded, then processes and memory as before?

    python -m bench.cycles [--swaps 20]

Memory in use is what the kernel cannot reclaim (anonymous, shared, slabs, page tables, stacks), on the whole machine:
MemAvailable would count the page cache, and moves by hundreds of MiB on a virtual machine where nothing happens. Other
work on the machine shows in it. Last line: `left_processes= memory_ratio= app_mib=`: the processes there beyond those
before, memory in use after over before, and the resident memory of the app.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import _report
from bench._servers import Server, demo_models, roundhouse, scratch_folder
from demo.facts import LLAMA_CHAT, QWEN3_CHAT, WHICH_MODEL

SETTLE_TIMEOUT_S = 10.0
POLL_S = 0.1
MIB = 2**20
UNRECLAIMABLE = ("AnonPages", "Shmem", "SUnreclaim", "PageTables", "KernelStack")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The machine and the server's process tree at a time."""

    processes: int
    used_mib: float
    app_mib: float


def snapshot(server: Server) -> Snapshot:
    app = psutil.Process(server.process.pid)
    return Snapshot(len(app.children(recursive=True)), used_kib() / 1024, app.memory_info().rss / MIB)


def used_kib() -> int:
    """What the whole machine holds and cannot give back."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in UNRECLAIMABLE)


def unload_all(server: Server) -> None:
    for model in server.get("/v1/models")["data"]:
        if model["state"] != "cold" and not model.get("parent"):
            server.post("/v1/model/unload", {"model": model["id"], "wait": True})


def settled(server: Server, processes: int) -> Snapshot:
    """As soon as no more than `processes` are left; at the latest after a bounded time."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while (now := snapshot(server)).processes > processes and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    swaps = parser.parse_args().swaps
    models = demo_models()
    with scratch_folder() as scratch, roundhouse(models, scratch, residency="one") as server:
        server.wait_warm()
        for model in (QWEN3_CHAT, LLAMA_CHAT):  # pages of the weights and of the libraries are cached from here on
            server.first_token_s(model, WHICH_MODEL)
        unload_all(server)
        before = settled(server, 0)
        took_s = [server.first_token_s((QWEN3_CHAT, LLAMA_CHAT)[i % 2], WHICH_MODEL) for i in range(swaps)]
        unload_all(server)
        after = settled(server, before.processes)
    rows = [
        ("processes below the app", before.processes, after.processes),
        ("memory in use on the machine, MiB", before.used_mib, after.used_mib),
        ("resident memory of the app, MiB", before.app_mib, after.app_mib),
    ]
    _report.print_table(f"{swaps} swaps, then everything unloaded", ("", "before", "after"), rows)
    print(f"\nseconds a swap: min {min(took_s):.2f}, max {max(took_s):.2f}")
    left = after.processes - before.processes
    ratio = after.used_mib / before.used_mib
    _report.print_figures({"left_processes": left, "memory_ratio": ratio, "app_mib": after.app_mib})


if __name__ == "__main__":
    main()
