"""Over how many GPUs a model is spread, and over how many machines. Pure but for a look at the model's config.json.

A model that fits one GPU stays on one: what GPUs tell each other for every token costs more than it gains for one
request. One that does not is cut by tensors over as few as hold it, or, where its attention heads cannot be cut so,
by layers. Engines always begin at the first GPU and take an equal share of each, so that the ledger of the first one
holds for all: it is never emptier than another.

Several machines are settings: vLLM's executors `ray` (which finds the other machines), or `mp` with `nnodes` and
`master-addr`, for which the same command runs on each of them, with `--headless` and a `--node-rank` of its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from engines.model_config import number, read_config
from models.types import ModelSpec

TENSOR, PIPELINE = "tensor-parallel-size", "pipeline-parallel-size"
EXECUTOR, NODES, RANK, MASTER = "distributed-executor-backend", "nnodes", "node-rank", "master-addr"


@dataclass(frozen=True, slots=True)
class Spread:
    """`tensor` times `pipeline` GPUs of `nodes` machines; why, or why not what is configured."""

    tensor: int = 1
    pipeline: int = 1
    nodes: int = 1
    reason: str = ""
    refusal: str = ""

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    def arguments(self) -> dict[str, int]:
        """What is not vLLM's default."""
        return {name: size for name, size in ((TENSOR, self.tensor), (PIPELINE, self.pipeline)) if size > 1}


ONE = Spread()


def configured(given: Mapping[str, Any], device: str, gpus: int) -> Spread | None:
    """What the configuration's arguments say, by name; None where they say nothing of it."""
    if not {TENSOR, PIPELINE, EXECUTOR, NODES, RANK, MASTER} & given.keys():
        return None
    sizes = [_size(given.get(name, 1)) for name in (TENSOR, PIPELINE, NODES)]
    if 0 in sizes:
        return Spread(refusal=f"{TENSOR}, {PIPELINE} and {NODES} are numbers from 1 on")
    tensor, pipeline, nodes = sizes
    refusal = _refusal(given, tensor * pipeline, nodes, device, gpus)
    reason = f"{tensor * pipeline} GPU(s): configured" + (f", on {nodes} machines" if nodes > 1 else "")
    return Spread(tensor, pipeline, nodes, reason, refusal)


def _size(value: object) -> int:
    text = str(value)
    return int(text) if text.isdecimal() else 0


def _refusal(given: Mapping[str, Any], world: int, nodes: int, device: str, gpus: int) -> str:
    executor = str(given.get(EXECUTOR) or "")
    if executor == "ray" and device == "cpu":
        return f"{EXECUTOR}: vLLM does not use ray on a CPU"
    if executor == "ray" and find_spec("ray") is None:
        return f"{EXECUTOR}: ray is not installed here; install it beside vLLM, or use mp with {NODES}"
    if nodes > 1 and executor == "ray":
        return f"{NODES}: for the executor mp; ray finds the machines of its cluster by itself"
    if nodes > 1 and not given.get(MASTER):
        return f"{NODES}: {nodes} machines need {MASTER}, the address of this one that the others can reach"
    if str(given.get(RANK, 0)) != "0":
        return f"{RANK}: this machine answers the requests, and so is number 0; the others are numbered from 1 on"
    if world % nodes:
        return f"{world} GPUs cannot be spread evenly over {nodes} machines ({NODES})"
    if device == "cuda" and executor != "ray" and world // nodes > gpus:
        return (
            f"{TENSOR} times {PIPELINE} needs {world // nodes} GPUs on each machine, and {gpus} are here; for several "
            f"machines set {EXECUTOR}: ray, or {NODES} and {MASTER}"
        )
    return ""


def choose(spec: ModelSpec, held_bytes: int, room_bytes: int, gpus: int) -> Spread:
    """For `held_bytes` of weights, where each of `gpus` has room for `room_bytes` of them."""
    if gpus <= 1 or room_bytes <= 0 or held_bytes <= room_bytes:
        return ONE
    sizes = [size for size in range(2, gpus + 1) if held_bytes <= size * room_bytes]
    heads, layers = number(read_config(spec), "num_attention_heads", "n_head"), spec.num_layers or 0
    for size in sizes:
        if heads and heads % size == 0 and _shares(spec.num_kv_heads or heads, size):
            return Spread(tensor=size, reason=f"{size} GPUs, cut by tensors: its weights do not fit one")
    for size in sizes:
        if layers >= size:
            return Spread(pipeline=size, reason=f"{size} GPUs, cut by layers: its weights do not fit one")
    return ONE


def _shares(kv_heads: int, size: int) -> bool:
    """Whether key and value heads can be cut, or copied, for so many."""
    return kv_heads % size == 0 or size % kv_heads == 0


def commands_elsewhere(args: Sequence[str], nodes: int) -> list[str]:
    """What to run on each other machine, where `args`, which begin with --model, are those of this one."""
    kept = [arg for at, arg in enumerate(args) if f"--{RANK}" not in (arg, args[at - 1])]
    return [
        f"on machine {rank} run: vllm serve {shlex.join(kept[1:])} --headless --{RANK} {rank}"
        for rank in range(1, nodes)
    ]
