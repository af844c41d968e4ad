"""A fault of vLLM's LoRA on the CPU, mended: requests for the base would get what belongs to an adapter.

A token without an adapter has the slot -1, which vLLM's kernels for GPUs skip. Its operations for the CPU take it for
an index, and so for the last slot: once that is filled, the base answers as the adapter in it
(https://github.com/vllm-project/vllm/pull/48421, open at vLLM 0.32).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

OPERATIONS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")  # others are made of these
# Where they are defined, and imported by name.
MODULES = (
    "vllm.lora.ops.torch_ops.lora_ops",
    "vllm.lora.ops.torch_ops",
    "vllm.lora.punica_wrapper.punica_cpu",
)


def leave_base_tokens_alone() -> None:
    """Lets each operation see only the rows that have an adapter; what it does with those is vLLM's own."""
    modules = []
    for name in MODULES:
        with suppress(ImportError):
            modules.append(importlib.import_module(name))
    for name in OPERATIONS:
        for module in modules:
            original = getattr(module, name, None)
            if original is not None and not hasattr(original, "__wrapped__"):
                setattr(module, name, _on_adapters_rows(original))


def _on_adapters_rows(operation: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(operation)
    def on_rows(inputs: Any, weights: Any, output: Any, slots: Any, *more: Any, **named: Any) -> None:
        """`inputs` [tokens, in], `weights` [slots, …], `output` [tokens, out], changed in place; `slots` [tokens]."""
        rows = (slots >= 0).nonzero().squeeze(1)
        if len(rows) == len(slots):
            operation(inputs, weights, output, slots, *more, **named)
        elif len(rows):
            part = output[rows]
            operation(inputs[rows], weights, part, slots[rows], *more, **named)
            output[rows] = part

    return on_rows
