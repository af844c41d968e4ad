"""Which backend, in which precision: by measurement at the first load of a model on this machine, then as kept.

Whatever goes wrong here leaves the model to torch. What is kept holds for this content of the model's folder, these
libraries, this CPU or GPU, and these arguments.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from engines.runtime.backends import kept
from engines.runtime.backends.candidates import FILES, candidates, float32_bytes, key_of
from engines.runtime.backends.kept import PLAIN, Candidate, Choice, Figures
from engines.runtime.backends.measuring import measured
from engines.runtime.transformers_args import TransformersArgs

# Times the bytes of the weights in float32: what a candidate takes of the host's memory at its worst.
LOADING_FACTOR, EXPORTING_FACTOR = 1, 4
COMPARING_S = 30.0  # somebody waits for this load: after so long no other candidate is tried
WORTH = 1.1  # how much faster than what is simpler a candidate must be

logger = logging.getLogger(__name__)


class CannotRun(Exception):
    """The backend that the user asked for cannot run this model; the message says why."""


def choose(model_path: str, args: TransformersArgs) -> TransformersArgs:
    """`args` with a backend and a precision for `auto`. Takes seconds the first time, and next to nothing after that.

    Raises CannotRun where `args` name a backend that cannot run this model.
    """
    if not args.cache_dir:
        return args
    among = candidates(Path(model_path), args)
    if len(among) == 1 and among[0].backend == "torch":
        return resolved(args, among[0])
    cache = Path(args.cache_dir)
    folder, key = kept.folder_of(cache, model_path), key_of(model_path, args, among)
    try:
        choice = _kept(folder, key)
        if choice is None:
            with kept.locked(folder):
                choice = _kept(folder, key) or _decide(folder, key, model_path, args, among)
                kept.forget_missing(cache)
    except OSError as error:
        logger.warning("No backend is chosen for %s: %s", model_path, error)
        return _fallback(args, str(error))
    if choice.candidate not in among:  # torch float32, for want of another
        return _fallback(args, "; ".join(map(str, choice.figures)))
    logger.info("%s runs on %s", model_path, choice)
    return resolved(args, choice.candidate, folder / choice.file if choice.file else None)


def without_export(model_path: str, args: TransformersArgs) -> TransformersArgs:
    """`args` for torch, after what was kept turned out to be of no use; the next load measures again."""
    kept.forget(kept.folder_of(Path(args.cache_dir), model_path))
    return resolved(args, Candidate("torch", args.resolved_dtype))


def resolved(args: TransformersArgs, candidate: Candidate, body: Path | None = None) -> TransformersArgs:
    fields = {"backend": candidate.backend, "dtype": candidate.dtype, "body_path": str(body or "")}
    return TransformersArgs.model_validate(args.model_dump() | fields)


def _fallback(args: TransformersArgs, reason: str) -> TransformersArgs:
    if args.backend in FILES:
        raise CannotRun(f"engine_args.backend: {args.backend} cannot run this model here: {reason}")
    return resolved(args, Candidate("torch", args.resolved_dtype))


def _kept(folder: Path, key: str) -> Choice | None:
    choice = kept.read(folder)
    return choice if choice is not None and choice.key == key else None


def _decide(folder: Path, key: str, model_path: str, args: TransformersArgs, among: Sequence[Candidate]) -> Choice:
    """Measures all of `among`, and keeps the best and its file. Raises OSError where there is no room for that."""
    factor = EXPORTING_FACTOR if any(each.backend in FILES for each in among) else LOADING_FACTOR
    needed_bytes = factor * float32_bytes(Path(model_path))
    if psutil.virtual_memory().available < needed_bytes:
        raise OSError(f"that would take {needed_bytes / 1024**3:.1f} GiB of memory, which are not free now")
    logger.info("%s: its first load here, so %s are compared", model_path, ", ".join(map(str, among)))
    aside = folder / f"{key}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    try:
        figures: list[Figures] = []
        until_s = time.monotonic() + COMPARING_S
        for each in dict.fromkeys((PLAIN, *among)):
            if figures and time.monotonic() > until_s:
                figures.append(Figures(each, error=f"not tried, as {COMPARING_S:.0f} s were over"))
                continue
            body = aside / FILES[each.backend] if each.backend in FILES else None
            figures.append(measured(each, model_path, resolved(args, each, body), aside / "reference.npz"))
            logger.info("%s: %s", model_path, figures[-1])
            if each == PLAIN and figures[-1].error:
                break  # a broken model; its load will say so
        best = best_of(figures, among)
        choice = Choice(key, args.fingerprint, model_path, best, figures=tuple(figures))
        if best.backend in FILES:
            choice = _keep_file(aside, folder, choice)
        if not figures[0].error:
            kept.write(folder, choice)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return choice


def best_of(figures: Sequence[Figures], among: Sequence[Candidate]) -> Candidate:
    """The fastest of `among`, by the geometric mean of its gains at single texts and in batches.

    A later one, less simple or less precise, must be faster by `WORTH`. Torch float32 where none of them works.
    """
    plain = figures[0]
    best, best_gain = PLAIN, 0.0
    for each in figures:
        if each.error or each.candidate not in among:
            continue
        gain = math.sqrt(plain.single_ms / each.single_ms * each.texts_per_s / plain.texts_per_s)
        if gain >= best_gain * WORTH:
            best, best_gain = each.candidate, gain
    return best


def _keep_file(aside: Path, folder: Path, choice: Choice) -> Choice:
    """Moves the winner's files to where they stay; those of the others are dropped."""
    name = FILES[choice.candidate.backend]
    for path in aside.iterdir():
        if path.stem != Path(name).stem:
            path.unlink()
    place = folder / choice.key
    shutil.rmtree(place, ignore_errors=True)
    os.replace(aside, place)
    return replace(choice, file=f"{choice.key}/{name}", size_bytes=(place / name).stat().st_size)
