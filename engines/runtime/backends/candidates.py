"""What may compute a model on this machine, and the key of everything that decides which of it wins.

The app asks, too, whether what is kept still holds; so nothing here imports a framework.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from engines.runtime.backends.cores import usable_cores
from engines.runtime.backends.kept import Candidate
from engines.runtime.transformers_args import TransformersArgs
from utils import nvml

FORMAT = 1  # raised when what is exported, measured or kept changes
LIBRARIES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino")
PACKAGES = {"torch": ("torch",), "onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
FILES = {"onnx": "onnx.onnx", "openvino": "openvino.xml"}  # each with its weights in a .bin beside it
# Types of models whose transformer is a plain encoder of text, and is exported faithfully; the check at the first load
# would find one that is not, after having taken time and memory for it.
ENCODERS = (
    *("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet"),
    *("nomic_bert", "roberta", "xlm-roberta"),
)
# Of weights in float32. A large encoder of BERT's kind has 1.3 GB; a file of ONNX holds no more than 2.
MAX_EXPORTED_BYTES = 1536 * 1024**2
BFLOAT16_FLAGS = frozenset(("amx_bf16", "avx512_bf16", "bf16"))  # elsewhere it is emulated, and slow
BFLOAT16_CAPABILITY = 80  # of a GPU for computing, ten times: from here on its tensor cores take it
FLOAT16_CAPABILITY = 70
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # by the names of safetensors


def candidates(folder: Path, args: TransformersArgs) -> Sequence[Candidate]:
    """What may run the model in `folder`, the simplest first."""
    precisions = _precisions(folder, args)
    if args.backend == "auto":
        backends = ["torch", *(FILES if _is_exportable(folder, args) else ())]
        backends = [each for each in backends if all(map(importlib.util.find_spec, PACKAGES[each]))]
    else:
        backends = [args.backend]
    return [
        Candidate(backend, precision)
        for backend in backends
        for precision in precisions
        if backend != "onnx" or precision == "float32"
    ] or [Candidate("torch", args.resolved_dtype)]


def _precisions(folder: Path, args: TransformersArgs) -> Sequence[str]:
    """The one that is configured; else the model's own, and one that has half the bits where this machine may be
    faster with it. On a GPU a model that is stored in 16 bits keeps them: they are its own."""
    if args.dtype not in (None, "auto"):
        return [str(args.dtype)]
    if args.device == "cpu":
        return ["float32", *(["bfloat16"] if BFLOAT16_FLAGS & set(_cpu()[1].split()) else ())]
    if _config(folder).get("quantization_config") or stored_dtype(folder) != "float32":
        return [args.resolved_dtype]
    # bfloat16 before float16 though it is less exact: numbers too large for float16 are found by no check at a load.
    capability = _gpu()[1]
    if capability >= BFLOAT16_CAPABILITY:
        return ["float32", "bfloat16"]
    return ["float32", "float16"] if capability >= FLOAT16_CAPABILITY else ["float32"]


def _cpu() -> tuple[str, str]:
    """The name of the CPU and its flags, as the kernel tells them."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    return facts.get("model name", ""), facts.get("flags", facts.get("features", ""))


def _gpu() -> tuple[str, int]:
    """The name of the GPU and ten times its compute capability; 0 where nothing tells it."""
    gpus = nvml.visible_gpus()
    return (gpus[0].name, gpus[0].capability) if gpus else ("", 0)


def _is_exportable(folder: Path, args: TransformersArgs) -> bool:
    config = _config(folder)
    if args.device != "cpu" or args.method is not None:
        return False
    if config.get("model_type") not in ENCODERS or config.get("quantization_config"):
        return False
    if args.trust_remote_code and "auto_map" in config:
        return False
    return 0 < float32_bytes(folder) <= MAX_EXPORTED_BYTES


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def float32_bytes(folder: Path) -> int:
    """Of the weights in `folder`, once they are float32; 0 where they are not safetensors."""
    stored_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return stored_bytes * (2 if _first_dtype(folder) in ("float16", "bfloat16") else 1)


def stored_dtype(folder: Path) -> str:
    """As transformers loads the model unasked: what its configuration names, else that of its first weights.

    Empty where neither tells it.
    """
    config = _config(folder)
    named = config.get("dtype") or config.get("torch_dtype")
    return named if isinstance(named, str) else _first_dtype(folder)


def _first_dtype(folder: Path) -> str:
    """Of the first weights; empty where they cannot be read."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as weights:
                return STORED.get(weights.get_slice(next(iter(weights.keys()))).get_dtype(), "")
        except (OSError, SafetensorError, StopIteration):
            return ""
    return ""


def key_of(model_path: str, args: TransformersArgs, among: Sequence[Candidate]) -> str:
    """Another one for whatever may change which candidate wins, or what it computes."""
    facts = {
        "format": FORMAT,
        "model": args.fingerprint or _fingerprint(Path(model_path)),
        "kind": [args.task, args.method, args.normalize],
        "candidates": [str(each) for each in among],
        "threads": args.threads or usable_cores(),
        "cpu": _cpu(),
        "gpu": _gpu() if args.device == "cuda" else None,
        "libraries": {each: version(each) for each in LIBRARIES if importlib.util.find_spec(each.replace("-", "_"))},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _fingerprint(folder: Path) -> str:
    return str(sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file()))
