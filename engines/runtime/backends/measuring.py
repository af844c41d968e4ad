"""What a candidate shows: one model loaded and run in a process of its own, checked against torch in float32.

A process for each, because an export leaves memory behind that is never given back, a library that crashes at some
model must not take the engine with it, and threads of one library that still spin would slow down the next.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.runtime.backends.bodies import BODIES, Unsuitable, set_threads
from engines.runtime.backends.kept import PLAIN, Candidate, Figures
from engines.runtime.linux import die_with_parent
from engines.runtime.retrieval import Encoded, EncodeOptions, RetrievalModel, Source
from engines.runtime.transformers_args import TransformersArgs
from utils import procfs

LIMIT_S = 180.0  # of one candidate, its import and export included
SINGLE_S, BATCH_S = 0.4, 0.8  # of measuring
MIN_ROUNDS = 3
SINGLES = 8
BATCH = {"cpu": 8, "cuda": 64}  # as fast as 32 on a CPU, if texts of a batch are alike in length; a GPU needs more
MIN_COSINE = 0.999  # of a reduced precision
MAX_DIFFERENCE = 1e-5  # of float32, in units of the largest number of an output (at least 1)
SHORT_WORDS, LONG_WORDS, LONGEST_WORDS = (5, 15), (5, 60), (200, 200)
WORDS = "the a of engine stands on turntable morning steam water coal yard signal keeper reads which train left"

logger = logging.getLogger(__name__)


def measured(candidate: Candidate, model_path: str, args: TransformersArgs, reference: Path) -> Figures:
    """Runs `candidate`, whose arguments are `args`, in a process of its own. Never raises for what happens there.

    `reference` is written by torch float32, and read by the others.
    """
    # A fork has all imports already; but it copies one thread only.
    context: Any = multiprocessing.get_context("fork" if procfs.thread_count() == 1 else "spawn")
    receiving, sending = context.Pipe(duplex=False)
    given = (candidate, model_path, args, reference, sending, os.getpid())
    process = context.Process(target=_tell, args=given, name=str(candidate), daemon=True)
    process.start()
    sending.close()
    try:
        if not receiving.poll(LIMIT_S):
            return Figures(candidate, error=f"it took longer than {LIMIT_S:.0f} s")
        figures: Figures = receiving.recv()
        return figures
    except EOFError:
        process.join()
        return Figures(candidate, error=f"its process ended with {process.exitcode}")
    finally:
        receiving.close()
        process.kill()
        process.join()


def _tell(
    candidate: Candidate,
    model_path: str,
    args: TransformersArgs,
    reference: Path,
    sending: Connection,
    parent_pid: int,
) -> None:
    """The process of one candidate."""
    die_with_parent(signal.SIGKILL, parent_pid)
    try:
        figures = _measure(candidate, model_path, args, reference)
    except Exception as error:  # whatever a library thinks of a model: it is no candidate then
        if not isinstance(error, Unsuitable):
            logger.info("%s cannot run %s", candidate, model_path, exc_info=True)
        figures = Figures(candidate, error=" ".join(str(error).split())[:300] or repr(error))
    sending.send(figures)


def _measure(candidate: Candidate, model_path: str, args: TransformersArgs, reference: Path) -> Figures:
    from engines.runtime.transformers_runtime import load_model

    set_threads(args)
    model = load_model(model_path, args)
    if candidate.backend in BODIES and not Path(args.body_path).is_file():
        raise Unsuitable("this kind of model is run by torch only")
    singles, batch, long = samples(model, BATCH[args.device])
    outputs = [output for inputs in (batch, singles[:3], singles[3:4], long) for output in model.forward(inputs)]
    cosine = 1.0
    if candidate == PLAIN:
        np.savez(reference, *outputs)
    else:
        cosine = check(candidate, outputs, _load(reference), by_row=model.kind not in ("score", "labels"))
    alone = [partial(model.forward, [each]) for each in singles]
    single_s = statistics.median(timed(alone, SINGLE_S))
    batch_s = min(timed([partial(model.forward, batch)], BATCH_S))
    return Figures(candidate, single_s * 1e3, len(batch) / batch_s, cosine)


def samples(model: RetrievalModel, count: int) -> tuple[list[Encoded], list[Encoded], list[Encoded]]:
    """Short texts to be run alone, `count` alike ones for a batch, and a long one; pairs where a model reads those."""
    chance = random.Random(0)

    def text(words: tuple[int, int]) -> str:
        return " ".join(chance.choices(WORDS.split(), k=chance.randint(*words)))

    def source(words: tuple[int, int]) -> Source:
        return (text(SHORT_WORDS), text(words)) if model.task == "rerank" else text(words)

    encoder = model.encoder
    options = EncodeOptions(limit=encoder.max_tokens, side="document")
    singles = encoder.encode([source(SHORT_WORDS) for _ in range(SINGLES)], options)
    several = encoder.encode([source(LONG_WORDS) for _ in range(4 * count)], options)
    several.sort(key=lambda each: each.tokens)
    return singles, several[count : 2 * count], encoder.encode([source(LONGEST_WORDS)], options)


def timed(works: Sequence[Callable[[], object]], limit_s: float) -> list[float]:
    """Seconds of each call, `works` one after the other and again until `limit_s` is over."""
    took: list[float] = []
    deadline_s = time.perf_counter() + limit_s
    while len(took) < MIN_ROUNDS or time.perf_counter() < deadline_s:
        begin_s = time.perf_counter()
        works[len(took) % len(works)]()
        took.append(time.perf_counter() - begin_s)
    return took


def _load(reference: Path) -> list[NDArray[np.float32]]:
    with np.load(reference) as arrays:
        return [arrays[name] for name in arrays.files]


def check(
    candidate: Candidate,
    outputs: Sequence[NDArray[np.float32]],
    expected: Sequence[NDArray[np.float32]],
    *,
    by_row: bool,
) -> float:
    """The lowest cosine to what torch gives in float32. Raises Unsuitable where they are too far apart.

    Not `by_row`, all outputs together are one vector: a single score has no direction.
    """
    if [each.shape for each in outputs] != [each.shape for each in expected]:
        raise Unsuitable("its outputs have another shape than torch's")
    pairs = list(zip(outputs, expected, strict=True))
    if candidate.dtype == "float32":
        apart = max(float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())) for ours, theirs in pairs)
        if not apart <= MAX_DIFFERENCE:
            raise Unsuitable(f"its numbers are up to {apart:.1e} from torch's")
    if not by_row:
        pairs = [(np.concatenate([each.ravel() for each in outputs]), np.concatenate([e.ravel() for e in expected]))]
    cosine = min(_cosine(ours.ravel(), theirs.ravel()) for ours, theirs in pairs)
    if not cosine >= MIN_COSINE:
        raise Unsuitable(f"its cosine to torch float32 is {cosine:.4f}, below {MIN_COSINE}")
    return cosine


def _cosine(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    lengths = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / lengths if lengths else float(np.array_equal(ours, theirs))
