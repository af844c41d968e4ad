"""Embeddings through the router against Infinity and against no server at all; single queries and chat beside bulk.

All with all-MiniLM-L6-v2 and texts of 5 to 60 words, asked for as OpenAI's client does (base64).
- throughput: 1,024 texts from 1, 8 and 32 clients, one text a request, and in one request. Against infinity-emb 0.0.78
  with its own settings, in its own environment (build/infinity-venv, made on first use), and sentence-transformers'
  `encode` in a child process with our precision and its best batch size. Everything in rounds, in turn: only one works
  at a time. The vectors are compared with those of `encode` in float32.
- latency: a short query alone, and again and again while a request of 10,000 texts runs, or while 1,024 requests of one
  text do that another client sent at once; the same with Infinity, where no request may have as many (five of 2,000).
- chat: embeddings alone, chat answers at full load alone, then both at once, in rounds.
- memory: of the engine's process before and after what is too long, too much or empty (see bench._retrieval_memory).

    python -m bench.retrieval [--part throughput|latency|chat|memory] [--rounds 3] [--quick]

`--quick` tries it out with a sixteenth of the texts. Last line: `min_ratio=` texts/s over Infinity's, the least of the
four loads; `of_in_process=` texts/s of one request over those of `encode`; `latency_ratio=` a query's median beside
bulk over that alone; `beside_chat=` texts/s beside chat over those alone, `chat_beside=` chat's tokens/s likewise;
`memory_ratio=` the engines' memory after over before. Besides: `max_error=`, the largest difference of a number of a
vector; `least_cosine=`; `most_in_float32=`, texts/s that its matrix products alone would allow, over Infinity's in
one request; `peak_mib=`, the most that an engine or the router grew by meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import uvloop

from bench import _report
from bench._embedding import InProcess, at_once, embed, in_process, one_by_one, texts
from bench._infinity import infinity
from bench._load import Clients, asks, clients, closed_loop, together
from bench._retrieval_memory import memory
from bench._servers import ON_THE_FASTEST, Server, demo_models, roundhouse, scratch_folder
from bench._timeline import tokens_between
from demo.facts import EMBEDDER, QWEN3_CHAT, RERANKER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Measured: TypeAlias = tuple[float, NDArray[np.float32]]

KV_CACHE_BYTES = 128 * 2**20
COUNT = 1024
QUICK = 16  # times fewer texts
BULK = 10_000
MOST_OF_THEIRS = 2_000  # in a request; Infinity takes 2,048
QUERIES = 64  # one after the other, alone
QUERY_WORDS = (4, 12)
SETTLED_S = 1.0  # from sending the bulk on, until when queries do not count
CHAT_CLIENTS, EMBED_CLIENTS = 16, 8
CHAT_S = 20.0
SAME_PRECISION = 1e-4  # a larger difference comes from another precision, not from another order of sums
REDUCED = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Options:
    """`scale`: the part of the texts and seconds that is measured."""

    rounds: int
    scale: float

    def count(self, whole: int) -> int:
        return round(whole * self.scale)


def models_folder(scratch: Path, *names: str) -> Path:
    """A models folder with these demo models alone."""
    made, folder = demo_models(), scratch / "models"
    for name in names:
        shutil.copytree(made / name, folder / name)
    return folder


@asynccontextmanager
async def sides(*servers: Server) -> AsyncIterator[list[Clients]]:
    """Clients of each server, whose model is loaded and has run."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(clients(server.url)) for server in servers]
        for one in found:
            await one_by_one(one, EMBEDDER, texts(64), 8)
            await at_once(one, EMBEDDER, texts(64))
        yield found


# -- throughput --------------------------------------------------------------------------------------------------------

Load: TypeAlias = Callable[[Clients], "Awaitable[Measured]"]


def loads(given: Sequence[str]) -> dict[str, Load]:
    """The last is the one request."""
    found: dict[str, Load] = {
        f"{count} client{'s' * (count > 1)}": partial(one_by_one, model=EMBEDDER, given=given, count=count)
        for count in (1, 8, 32)
    }
    return found | {f"1 request of {len(given)}": partial(at_once, model=EMBEDDER, given=given)}


@dataclass(slots=True)
class Exactness:
    """How far vectors are from those that `encode` makes in float32."""

    expected: NDArray[np.float32]
    max_error: float = 0.0
    least_cosine: float = 1.0

    def check(self, found: NDArray[np.float32]) -> None:
        products = (found * self.expected).sum(axis=1)
        cosines = products / np.linalg.norm(found, axis=1) / np.linalg.norm(self.expected, axis=1)
        self.max_error = max(self.max_error, float(np.abs(found - self.expected).max()))
        self.least_cosine = min(self.least_cosine, float(cosines.min()))


def precision(alone: InProcess, exactness: Exactness, given: Sequence[str]) -> tuple[str, int]:
    """Our precision, as its vectors tell, and the best batch size of `encode` with it. Of reduced ones the faster."""
    found = ["float32"] if exactness.max_error < SAME_PRECISION else list(REDUCED)
    some = given[: max(64, len(given) // 4)]
    tried = [(dtype, alone.best_batch(dtype, some)) for dtype in found]
    return max(tried, key=lambda one: alone.rate(one[0], some, one[1])) if len(tried) > 1 else tried[0]


async def throughput(ours: Server, theirs: Server, alone: InProcess, options: Options) -> dict[str, float]:
    given = texts(options.count(COUNT))
    kinds = loads(given)
    rates: dict[tuple[str, int], list[float]] = {pair: [] for pair in itertools.product(kinds, (0, 1))}
    bare: list[float] = []
    expected = await asyncio.to_thread(alone.vectors, given)
    exactness, of_theirs = Exactness(expected), Exactness(expected)
    async with sides(ours, theirs) as both:
        exactness.check((await at_once(both[0], EMBEDDER, given))[1])
        dtype, batch = await asyncio.to_thread(precision, alone, exactness, given)
        for round_number in range(options.rounds):
            for kind, load in kinds.items():
                for side in (0, 1) if round_number % 2 else (1, 0):
                    rate, found = await load(both[side])
                    rates[kind, side].append(rate)
                    (of_theirs if side else exactness).check(found)
            bare.append(await asyncio.to_thread(alone.rate, dtype, given, batch))
    medians = {pair: statistics.median(values) for pair, values in rates.items()}
    rows: list[tuple[object, ...]] = [
        (kind, medians[kind, 0], medians[kind, 1], medians[kind, 0] / medians[kind, 1]) for kind in kinds
    ]
    last = list(kinds)[-1]
    in_child = statistics.median(bare)
    most = await asyncio.to_thread(alone.most, given)
    rows += [
        ("float32's matrix products alone, at their best", most, medians[last, 1], most / medians[last, 1]),
        (f"encode in a process, {dtype}, {batch} a batch", medians[last, 0], in_child, medians[last, 0] / in_child),
        ("largest error of a number", f"{exactness.max_error:.1e}", f"{of_theirs.max_error:.1e}", ""),
    ]
    _report.print_table(f"Texts/s, {options.rounds} rounds", ("", "ours", "theirs", "ratio"), rows)
    return {
        "min_ratio": min(medians[kind, 0] / medians[kind, 1] for kind in kinds),
        "most_in_float32": most / medians[last, 1],
        "of_in_process": medians[last, 0] / in_child,
        "max_error": exactness.max_error,
        "least_cosine": exactness.least_cosine,
    }


# -- latency -----------------------------------------------------------------------------------------------------------

Bulk: TypeAlias = Callable[[Clients, Sequence[str]], "list[asyncio.Future[bytes]]"]


async def query_times_s(one: Clients, go_on: Callable[[int], bool]) -> list[float]:
    """Seconds of short queries, one after the other, as long as `go_on` says of the number of those answered."""
    queries = itertools.cycle(texts(QUERIES, *QUERY_WORDS))
    took: list[float] = []
    while go_on(len(took)):
        began = time.monotonic()
        await embed(one, EMBEDDER, [next(queries)])
        took.append(time.monotonic() - began)
    return took


def in_one(one: Clients, given: Sequence[str]) -> list[asyncio.Future[bytes]]:
    """All of `given` in one request, by the route that takes as many."""
    body = {"model": EMBEDDER, "texts": given, "input_type": "search_document", "embedding_types": ["base64"]}
    return [asyncio.ensure_future(one.post_raw("/v2/embed", body))]


def in_several(one: Clients, given: Sequence[str]) -> list[asyncio.Future[bytes]]:
    """All of `given` at once, in as few requests as Infinity takes."""
    starts = range(0, len(given), MOST_OF_THEIRS)
    return [asyncio.ensure_future(embed(one, EMBEDDER, given[start : start + MOST_OF_THEIRS])) for start in starts]


def in_singles(one: Clients, given: Sequence[str]) -> list[asyncio.Future[bytes]]:
    """All of `given` at once, each in a request."""
    return [asyncio.ensure_future(embed(one, EMBEDDER, [text])) for text in given]


async def beside_bulk(one: Clients, other: Clients, send: Bulk, given: Sequence[str]) -> tuple[list[float], float]:
    """Seconds of queries of `one` while `given` is embedded for `other`, and the texts/s of that."""
    began = time.monotonic()
    requests = send(other, given)
    await asyncio.wait(requests, timeout=SETTLED_S)
    took = await query_times_s(one, lambda _: not all(request.done() for request in requests))
    await together(requests)
    return took, len(given) / (time.monotonic() - began)


async def latency(ours: Server, theirs: Server, options: Options) -> dict[str, float]:
    given = texts(options.count(BULK))
    rows: list[tuple[object, ...]] = []
    ratios: list[float] = []
    singles = given[: options.count(COUNT)]
    async with sides(ours, theirs) as both, AsyncExitStack() as stack:
        for name, server, one, send in zip(
            ("ours", "Infinity"), (ours, theirs), both, (in_one, in_several), strict=True
        ):
            other = await stack.enter_async_context(clients(server.url, "another"))
            before = await query_times_s(one, lambda count: count < QUERIES)
            during, rate = await beside_bulk(one, one, send, given)
            crowded, crowd_rate = await beside_bulk(one, other, in_singles, singles)
            after = await query_times_s(one, lambda count: count < QUERIES)
            if not (during and crowded):
                raise RuntimeError(f"{len(given)} texts were embedded before a query could be asked")
            ratios.append(statistics.median(during) / statistics.median(before + after))
            rows += [
                (f"{name}: query alone, ms", *_milliseconds(before + after)),
                (f"{name}: beside {len(given)} texts ({rate:.0f}/s), ms", *_milliseconds(during)),
                (f"{name}: beside {len(singles)} of another ({crowd_rate:.0f}/s), ms", *_milliseconds(crowded)),
            ]
    _report.print_table("A single query", ("", "min", "median", "max"), rows)
    return {"latency_ratio": ratios[0]}


def _milliseconds(seconds: Sequence[float]) -> tuple[float, float, float]:
    return _report.summary([1000 * one for one in seconds])


# -- chat --------------------------------------------------------------------------------------------------------------


async def embed_rate(one: Clients, length_s: float) -> float:
    """Texts/s of clients that each send a text as soon as they are answered, until `length_s` are over."""
    given = itertools.cycle(texts(COUNT))
    began = time.monotonic()
    answered = 0

    async def client() -> None:
        nonlocal answered
        while time.monotonic() < began + length_s:
            await embed(one, EMBEDDER, [next(given)])
            answered += 1

    await together(client() for _ in range(EMBED_CLIENTS))
    return answered / (time.monotonic() - began)


async def chat_rate(one: Clients, length_s: float) -> float:
    """Tokens/s of clients that each ask as soon as they are answered, while all of them run."""
    began = time.monotonic()
    questions = [asks((QWEN3_CHAT,), Random(number)) for number in range(CHAT_CLIENTS)]
    answers = await together(closed_loop(one, mine, began + length_s) for mine in questions)
    return tokens_between(list(itertools.chain.from_iterable(answers)), began, began + length_s) / length_s


async def chat(ours: Server, options: Options) -> dict[str, float]:
    length_s = max(2.0, CHAT_S * options.scale)
    embeds: list[float] = []
    chats: list[float] = []
    both: list[tuple[float, float]] = []
    async with sides(ours) as (one,):
        await chat_rate(one, 1.0)
        for _ in range(options.rounds):
            embeds.append(await embed_rate(one, length_s))
            chats.append(await chat_rate(one, length_s))
            embed_beside, chat_beside = await together((embed_rate(one, length_s), chat_rate(one, length_s)))
            both.append((embed_beside, chat_beside))
    alone = statistics.median(embeds), statistics.median(chats)
    beside = tuple(statistics.median(values) for values in zip(*both, strict=True))
    rows = [
        (f"embeddings, {EMBED_CLIENTS} clients, texts/s", alone[0], beside[0], beside[0] / alone[0]),
        (f"chat, {CHAT_CLIENTS} clients, tokens/s", alone[1], beside[1], beside[1] / alone[1]),
    ]
    _report.print_table("Embeddings and chat", ("", "alone", "together", "ratio"), rows)
    return {"beside_chat": beside[0] / alone[0], "chat_beside": beside[1] / alone[1]}


# -- all ---------------------------------------------------------------------------------------------------------------


def against_infinity(runner: asyncio.Runner, scratch: Path, parts: Sequence[str], options: Options) -> dict[str, float]:
    folder = models_folder(scratch, EMBEDDER)
    figures: dict[str, float] = {}
    with (
        roundhouse(folder, scratch, engines=ON_THE_FASTEST) as ours,
        infinity(folder / EMBEDDER, EMBEDDER, scratch) as theirs,
    ):
        ours.wait_warm()
        ours.post("/v1/model/load", {"model": EMBEDDER, "wait": True})
        print("\n".join(ours.get(f"/v1/models/{EMBEDDER}")["reasons"]))
        if "throughput" in parts:
            with in_process(folder / EMBEDDER) as alone:
                figures |= runner.run(throughput(ours, theirs, alone, options))
        if "latency" in parts:
            figures |= runner.run(latency(ours, theirs, options))
    return figures


def by_ourselves(runner: asyncio.Runner, scratch: Path, parts: Sequence[str], options: Options) -> dict[str, float]:
    folder = models_folder(scratch, EMBEDDER, RERANKER, QWEN3_CHAT)
    figures: dict[str, float] = {}
    with roundhouse(folder, scratch, kv_cache_bytes=KV_CACHE_BYTES, engines=ON_THE_FASTEST) as ours:
        ours.wait_warm()
        if "chat" in parts:
            figures |= runner.run(chat(ours, options))
        if "memory" in parts:
            figures |= runner.run(memory(ours, options.scale))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ("throughput", "latency", "chat", "memory")
    parser.add_argument("--part", choices=every)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    parts = (arguments.part,) if arguments.part else every
    options = Options(1, 1 / QUICK) if arguments.quick else Options(arguments.rounds, 1.0)
    figures: dict[str, float] = {}
    with scratch_folder() as scratch, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number, (those, measure) in enumerate(
            ((("throughput", "latency"), against_infinity), (("chat", "memory"), by_ourselves))
        ):
            if wanted := [part for part in parts if part in those]:
                (own := scratch / str(number)).mkdir()
                figures |= measure(runner, own, wanted, options)
    _report.print_figures(figures)


if __name__ == "__main__":
    main()
