"""How long a cold swap takes, from the request to the first token at the client, against vLLM's own start.

Ours: two chat models of which one fits at a time (`residency: one`), asked in turn, so that every request swaps.
Baseline: `python -m vllm.entrypoints.openai.api_server --enforce-eager`, same model, same KV cache, from the start of
the process to the first token, which is what a swapper waits that starts the server for each model. One run of each in
turn, so that a change in the machine's speed meets both. Also: an embedding model from cold to its vector.

    python -m bench.swap [--runs 5]

Last line: `ratio=` baseline over ours, medians; `swap_s= baseline_s= embed_s=`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench import _report
from bench._servers import START_TIMEOUT_S, Server, demo_models, plain_vllm, roundhouse, scratch_folder
from demo.facts import EMBEDDER, LLAMA_CHAT, QWEN3_CHAT, WHICH_MODEL

KV_CACHE_BYTES = 128 * 2**20
EMBED_RUNS = 5


def baseline_s(models: Path, scratch: Path) -> float:
    """From starting vLLM's own server to its first token, in seconds."""
    arguments = ("--kv-cache-memory-bytes", str(KV_CACHE_BYTES))
    with plain_vllm(models / QWEN3_CHAT, QWEN3_CHAT, scratch, *arguments) as server:
        server.wait_until("/health", START_TIMEOUT_S)
        server.first_token_s(QWEN3_CHAT, WHICH_MODEL)
        return time.monotonic() - server.started_s


def swaps_s(server: Server) -> tuple[float, float]:
    """One swap to each chat model, in seconds: the one that is measured, and the one that makes it cold again."""
    return server.first_token_s(QWEN3_CHAT, WHICH_MODEL), server.first_token_s(LLAMA_CHAT, WHICH_MODEL)


def embed_s(server: Server) -> float:
    """An embedding model from cold to its vector, in seconds."""
    server.post("/v1/model/unload", {"model": EMBEDDER, "wait": True})
    began = time.monotonic()
    server.post("/v1/embeddings", {"model": EMBEDDER, "input": "a roundhouse"})
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    models = demo_models()
    plain: list[float] = []
    ours: list[float] = []
    others: list[float] = []
    with scratch_folder() as scratch:
        settings = {"residency": "one", "kv_cache_bytes": KV_CACHE_BYTES}
        with roundhouse(models, scratch, **settings) as server:
            server.wait_warm()
            server.first_token_s(LLAMA_CHAT, WHICH_MODEL)
            for _ in range(runs):
                plain.append(baseline_s(models, scratch))
                mine, other = swaps_s(server)
                ours.append(mine)
                others.append(other)
            embeds = [embed_s(server) for _ in range(EMBED_RUNS)]
    rows = [
        ("vLLM's own server, start to first token", *_report.summary(plain)),
        (f"swap to {QWEN3_CHAT}", *_report.summary(ours)),
        (f"swap to {LLAMA_CHAT}", *_report.summary(others)),
        (f"cold {EMBEDDER}", *_report.summary(embeds)),
    ]
    _report.print_table(f"Cold starts, {runs} runs, seconds", ("", "min", "median", "max"), rows)
    swap_s, plain_s = _report.summary(ours)[1], _report.summary(plain)[1]
    figures = {"ratio": plain_s / swap_s, "swap_s": swap_s, "baseline_s": plain_s}
    _report.print_figures(figures | {"embed_s": _report.summary(embeds)[1]})


if __name__ == "__main__":
    main()
