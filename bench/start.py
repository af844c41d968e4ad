"""How soon `roundhouse serve` answers /health after its start, and what the app process takes.

    python -m bench.start [--runs 7]

Last line: `health_s= ready_s= app_mib=` (medians): /health answers, requests are taken, and the resident memory of the
app once the launchers have imported their frameworks.
"""

from __future__ import annotations

import argparse

import psutil

from bench import _report
from bench._servers import demo_models, roundhouse, scratch_folder

READY_TIMEOUT_S = 30.0
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    models = demo_models()
    health: list[float] = []
    ready: list[float] = []
    memory: list[float] = []
    for _ in range(runs):
        with scratch_folder() as scratch, roundhouse(models, scratch) as server:
            health.append(server.answered_s)
            ready.append(server.wait_until("/health/ready", READY_TIMEOUT_S))
            server.wait_warm()
            memory.append(psutil.Process(server.process.pid).memory_info().rss / MIB)
    rows = [
        ("/health answers, s", *_report.summary(health)),
        ("/health/ready says 200, s", *_report.summary(ready)),
        ("resident memory of the app, MiB", *_report.summary(memory)),
    ]
    _report.print_table(f"From the start of the process, {runs} runs", ("", "min", "median", "max"), rows)
    figures = {"health_s": health, "ready_s": ready, "app_mib": memory}
    _report.print_figures({name: _report.summary(values)[1] for name, values in figures.items()})


if __name__ == "__main__":
    main()
