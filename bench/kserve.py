"""Tensors through the router against the same server asked directly, by the same client (tritonclient, HTTP, binary).

The server is Triton with a Python model that gives back what it gets: as much as an image (0.6 MB), and 16 MiB. Through
us, Triton is asked by gRPC and by HTTP. Blocks alternate, so that whatever else the machine does meets all of them.

    python -m bench.kserve [--blocks 10] [--images 30] [--large 3]

Last line: medians, `image_direct_ms= image_grpc_ms= image_http_ms= large_direct_ms= large_grpc_ms= large_http_ms=`,
and the longest wait of a `/health/live` asked beside the large tensors, by gRPC: `beside_large_ms=`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import tritonclient.http as client  # type: ignore[import-untyped]

from bench import _report
from bench._servers import roundhouse, scratch_folder
from bench._triton import triton

IMAGE = np.random.default_rng(1).random((3 * 112 * 224, 2), np.float32)
LARGE = np.random.default_rng(2).random((1 << 21, 2), np.float32)
WAYS = ("direct", "grpc", "http")
TIMEOUT_S = 60.0
LISTED_S = 30.0


def took_ms(url: str, array: Any, count: int) -> list[float]:
    """Latencies of requests, one after the other on one connection."""
    tensor = client.InferInput("in_FP32", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    took = []
    with client.InferenceServerClient(url.removeprefix("http://"), network_timeout=TIMEOUT_S) as asked:
        for _ in range(count):
            began = time.perf_counter()
            asked.infer("echo", [tensor])
            took.append((time.perf_counter() - began) * 1000)
    return took


@contextmanager
def asking_beside(url: str) -> Iterator[list[float]]:
    """Asks /health/live all the while; the latencies."""
    took: list[float] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            began = time.perf_counter()
            urllib.request.urlopen(f"{url}/health/live", timeout=TIMEOUT_S).read()
            took.append((time.perf_counter() - began) * 1000)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield took
    finally:
        over.set()
        asking.join()


def wait_listed(url: str) -> None:
    deadline = time.monotonic() + LISTED_S
    with client.InferenceServerClient(url.removeprefix("http://")) as asked:
        while not asked.is_model_ready("echo"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the model is not listed within {LISTED_S:g} s")
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--images", type=int, default=30, help="in a block")
    parser.add_argument("--large", type=int, default=3, help="large tensors in a block")
    arguments = parser.parse_args()
    images: dict[str, list[float]] = {way: [] for way in WAYS}
    large: dict[str, list[float]] = {way: [] for way in WAYS}
    beside: list[float] = []
    with scratch_folder() as scratch, ExitStack() as stack:
        far = stack.enter_context(triton(scratch))
        urls = {"direct": far.http}
        for way, url in (("grpc", far.grpc), ("http", far.http)):
            folder = scratch / way
            (folder / "models").mkdir(parents=True)
            engines = json.dumps({"far": {"kind": "triton", "url": url}})
            urls[way] = stack.enter_context(roundhouse(folder / "models", folder, engines=engines)).url
            wait_listed(urls[way])
        for _ in range(arguments.blocks):
            for way, url in urls.items():
                images[way] += took_ms(url, IMAGE, arguments.images)
                large[way] += took_ms(url, LARGE, arguments.large)
        with asking_beside(urls["grpc"]) as beside:
            took_ms(urls["grpc"], LARGE, arguments.large)
    medians = {
        f"{what}_{way}": statistics.median(took[way])
        for what, took in (("image", images), ("large", large))
        for way in WAYS
    }
    rows = [[way, medians[f"image_{way}"], medians[f"large_{way}"]] for way in WAYS]
    _report.print_table("Median milliseconds", ["asked", "0.6 MB", "16 MiB"], rows)
    _report.print_figures({f"{name}_ms": value for name, value in medians.items()} | {"beside_large_ms": max(beside)})


if __name__ == "__main__":
    main()
