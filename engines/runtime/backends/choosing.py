"""Which backend, in which precision: by measurement at the first load of a model on this machine, then as kept.

The other libraries are worth their export for plain encoders up to a certain size; everything else is torch's, and so
is whatever goes wrong here. What is kept holds for this content of the model's folder, these libraries, this CPU and
these arguments.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import psutil

from engines.runtime.backends import kept
from engines.runtime.backends.bodies import ENCODERS
from engines.runtime.backends.cores import usable_cores
from engines.runtime.backends.kept import PLAIN, Candidate, Choice, Figures
from engines.runtime.backends.measuring import measured
from engines.runtime.transformers_args import TransformersArgs

FORMAT = 1  # raised when what is exported, measured or kept changes
LIBRARIES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino")
PACKAGES = {"torch": ("torch",), "onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
FILES = {"onnx": "onnx.onnx", "openvino": "openvino.xml"}  # each with its weights in a .bin beside it
# Of weights in float32. A large encoder of BERT's kind has 1.3 GB; a file of ONNX holds no more than 2.
MAX_EXPORTED_BYTES = 1536 * 1024**2
MEMORY_FACTOR = 4  # times those bytes: what an export takes at its worst
BFLOAT16_FLAGS = frozenset(("amx_bf16", "avx512_bf16", "bf16"))  # elsewhere it is emulated, and slow
COMPARING_S = 30.0  # somebody waits for this load: after so long no other candidate is tried
WORTH = 1.1  # how much faster than what is simpler a candidate must be

logger = logging.getLogger(__name__)


class CannotRun(Exception):
    """The backend that the user asked for cannot run this model; the message says why."""


def choose(model_path: str, args: TransformersArgs) -> TransformersArgs:
    """`args` with a backend and a precision for `auto`. Takes seconds the first time, and next to nothing after that.

    Raises CannotRun where `args` name a backend that cannot run this model.
    """
    if args.device != "cpu" or not args.cache_dir:
        return args
    weights_bytes = float32_bytes(Path(model_path))
    among = candidates(Path(model_path), args, weights_bytes)
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


def candidates(folder: Path, args: TransformersArgs, weights_bytes: int) -> Sequence[Candidate]:
    """What may run the model in `folder`, the simplest first."""
    precisions = [args.dtype] if args.dtype not in (None, "auto") else ["float32", *_reduced()]
    if args.backend == "auto":
        backends = ["torch", *(FILES if _is_exportable(folder, weights_bytes, args) else ())]
        backends = [each for each in backends if all(map(importlib.util.find_spec, PACKAGES[each]))]
    else:
        backends = [args.backend]
    return [
        Candidate(backend, str(precision))
        for backend in backends
        for precision in precisions
        if backend != "onnx" or precision == "float32"
    ] or [Candidate("torch", args.resolved_dtype)]


def _reduced() -> Sequence[str]:
    return ["bfloat16"] if BFLOAT16_FLAGS & set(_cpu()[1].split()) else []


def _cpu() -> tuple[str, str]:
    """The name of the CPU and its flags, as the kernel tells them."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    return facts.get("model name", ""), facts.get("flags", facts.get("features", ""))


def _is_exportable(folder: Path, weights_bytes: int, args: TransformersArgs) -> bool:
    config = _config(folder)
    if config.get("model_type") not in ENCODERS or config.get("quantization_config") or args.method is not None:
        return False
    if args.trust_remote_code and "auto_map" in config:
        return False
    return 0 < weights_bytes <= MAX_EXPORTED_BYTES


def _config(folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def float32_bytes(folder: Path) -> int:
    """Of the weights in `folder`, once they are float32; 0 where they are not safetensors."""
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    config = _config(folder)
    named = config.get("dtype") or config.get("torch_dtype")
    return stored * (2 if named in ("float16", "bfloat16") else 1)


def key_of(model_path: str, args: TransformersArgs, among: Sequence[Candidate]) -> str:
    """Another one for whatever may change which candidate wins, or what it computes."""
    name, flags = _cpu()
    facts = {
        "format": FORMAT,
        "model": args.fingerprint or _fingerprint(Path(model_path)),
        "kind": [args.task, args.method, args.normalize],
        "candidates": [str(each) for each in among],
        "threads": args.threads or usable_cores(),
        "cpu": [name, flags],
        "libraries": {each: version(each) for each in LIBRARIES if importlib.util.find_spec(each.replace("-", "_"))},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _fingerprint(folder: Path) -> str:
    return str(sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file()))


def _kept(folder: Path, key: str) -> Choice | None:
    choice = kept.read(folder)
    return choice if choice is not None and choice.key == key else None


def _decide(folder: Path, key: str, model_path: str, args: TransformersArgs, among: Sequence[Candidate]) -> Choice:
    """Measures all of `among`, and keeps the best and its file. Raises OSError where there is no room for that."""
    needed_bytes = MEMORY_FACTOR * float32_bytes(Path(model_path))
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
