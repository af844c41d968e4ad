"""Whether a LoRA adapter was made for a base: its tensors against the base's, by names and shapes alone.

vLLM would take one for another size of the same model, and copy what fits of each matrix: wrong answers and no error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from engines.tensor_shapes import Tensor

NAMES_SHOWN = 3
PLAIN_DTYPES = frozenset({"F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})  # others are packed: their shapes are not it

_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.[^.]+)?(\.weight)?$")
_LAYER = re.compile(r"(?:^|\.)((?:layers|h|blocks)\.\d+\..+)$")


@dataclass(frozen=True, slots=True)
class _Part:
    """One matrix of an adapter: `rank` and the `size` of the module's side that it is on."""

    module: str
    side: str  # "A" is on the inputs' side, "B" on the outputs'
    rank: int
    size: int


def misfit(adapter: Mapping[str, Tensor], base: Mapping[str, Tensor], said_rank: int) -> str:
    """Why an adapter with these tensors cannot be right for a base with these, or "". `said_rank`: its configuration's.

    Where the base's tensors are unknown or packed, only what the adapter says by itself is looked at.
    """
    if not adapter:
        return ""  # not readable as safetensors: whoever loads it says why
    parts = list(_parts(adapter))
    if not parts:
        return "its weights have no LoRA matrices (lora_A, lora_B)"
    if halves := _halves(parts):
        return f"its weights have only one of the two LoRA matrices of {_some(halves)}"
    rank = max(part.rank for part in parts)
    if rank > said_rank:
        return f"its weights are of rank {rank}, where adapter_config.json says {said_rank}"
    return _compare(parts, _modules(base)) if base else ""


def _parts(adapter: Mapping[str, Tensor]) -> Iterator[_Part]:
    for name, tensor in adapter.items():
        match = _LORA.match(name)
        if match is None or len(tensor.shape) != 2 or ".experts" in name:
            continue  # experts are stored in too many ways
        first, second = tensor.shape
        rank, size = (first, second) if match["side"] == "A" else (second, first)
        yield _Part(match["module"].removeprefix("base_model.model."), match["side"], rank, size)


def _halves(parts: list[_Part]) -> list[str]:
    sides: dict[str, set[str]] = {}
    for part in parts:
        sides.setdefault(part.module, set()).add(part.side)
    return [module for module, found in sides.items() if len(found) == 1]


def _compare(parts: list[_Part], modules: Mapping[str, list[Tensor]]) -> str:
    lacking = dict.fromkeys(part.module for part in parts if _key(part.module) not in modules)
    if lacking:
        return f"its base has no {_some(lacking)}"
    for part in parts:
        shapes = [tensor.shape for tensor in modules[_key(part.module)] if _is_plain(tensor)]
        # Some models store their matrices the other way round.
        if shapes and not any(part.size in shape for shape in shapes):
            sides = " x ".join(map(str, shapes[0]))
            return f"it was made for another base: its {part.module} is for {part.size}, where the base has {sides}"
    return ""


def _modules(base: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """The base's tensors by the module that they are in."""
    modules: dict[str, list[Tensor]] = {}
    for name, tensor in base.items():
        modules.setdefault(_key(name.rpartition(".")[0]), []).append(tensor)
    return modules


def _key(module: str) -> str:
    """From the layer on: what stands before it differs between a model, its parts and what wraps it."""
    match = _LAYER.search(module)
    return match[1] if match else module.rpartition(".")[2]


def _is_plain(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and tensor.dtype in PLAIN_DTYPES


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
