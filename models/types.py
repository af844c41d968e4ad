"""What the parts of Roundhouse tell each other about models: frozen values, no behaviour, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple


class Task(StrEnum):
    """What a model is for; decides the engine and the routes that accept it."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBED = "embed"
    RERANK = "rerank"
    CLASSIFY = "classify"
    TENSOR = "tensor"  # tensors in, tensors out, as its signature says (KServe V2)
    ADAPTER = "adapter"
    UNSUPPORTED = "unsupported"


class Method(StrEnum):
    """How a model does its task, where there are several ways and the task does not say which."""

    MULTI_VECTOR = "multi_vector"  # embeds each token (ColBERT)
    SPARSE = "sparse"  # weighs the words of its vocabulary (SPLADE)
    QWEN3_RERANKER = "qwen3_reranker"  # a text generator that answers yes or no to Qwen3-Reranker's template
    BGE_RERANKER = "bge_reranker"  # the same with the template of bge-reranker-v2-gemma, its Yes alone


class Registered(NamedTuple):
    """What a package says of an architecture that it serves (entry-point group `roundhouse.architectures`)."""

    engine: str
    task: Task


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a model. `datatype` as KServe V2 names it ("FP32"); -1 in `shape` is any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a tensor model takes and gives. Nothing in `inputs`, `outputs` or `versions`: its server does not tell."""

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    versions: tuple[str, ...] = ()
    platform: str = ""


class Availability(StrEnum):
    """Whether a discovered folder can be served at all."""

    AVAILABLE = "available"
    INCOMPLETE = "incomplete"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class ModelOverrides:
    """What the configuration says of one model; None (or empty) means: decide by evidence."""

    aliases: tuple[str, ...] = ()
    task: Task | None = None
    engine: str | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    pinned: bool = False
    preload: bool = False
    keep_alive_s: float | None = None
    concurrency: int | None = None
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    priority: int = 0
    sleep: bool = True  # False: never put to sleep, always ended
    speculative: str | None = None  # "off", "ngram", or the id or folder of a draft; None: by what the model brings


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One folder of the models directory, judged. `reasons` say in plain words how each verdict was reached.

    `fingerprint` changes when the folder's content changes (names, sizes, modification times), so that a replaced
    folder is noticed. `parent` is the base of a LoRA adapter as its config names it.
    """

    id: str
    path: Path
    task: Task
    engine: str  # name of the engine factory: "vllm", "transformers"; "" where nothing serves it
    availability: Availability = Availability.AVAILABLE
    aliases: tuple[str, ...] = ()
    method: Method | None = None
    architecture: str = ""
    model_type: str = ""
    weights_bytes: int = 0
    max_model_len: int | None = None  # positions that the config allows
    hidden_size: int | None = None
    num_layers: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    dtype: str | None = None  # as the config names it: "bfloat16"
    quantization: str | None = None  # quant_method of the config: "awq", "fp8", …
    chat_template: bool = False
    parent: str | None = None
    signature: Signature | None = None  # of a tensor model
    created_s: int = 0  # Unix time of the folder's newest file
    fingerprint: str = ""
    reasons: tuple[str, ...] = ()
    overrides: ModelOverrides = field(default_factory=ModelOverrides)


class State(StrEnum):
    """Residency of a model on the device (see models/scheduling/residency.py for the legal transitions)."""

    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"
    SLEEPING = "sleeping"
    WAKING = "waking"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a finished load measured."""

    duration_s: float
    started_by: str  # "fork" or "exec"


@dataclass(frozen=True, slots=True)
class SleepReport:
    """What falling asleep measured: `device_bytes` are still held on the device, `host_bytes` now in host memory."""

    duration_s: float
    device_bytes: int
    host_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What an engine has done so far: two looks that are alike, while it has work, mean that it hangs.

    `steps` counts what it finished (forward passes, batches); None where it did not answer the question. `cpu_s` is the
    CPU time of its whole process tree. `stopped`: one of its processes is stopped (SIGSTOP, a debugger).
    """

    steps: float | None
    cpu_s: float
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as the manager sees it now; what /health, /v1/model/load and `roundhouse ps` show."""

    id: str
    state: State
    task: Task
    engine: str
    pinned: bool
    running: int
    queued: int
    memory_bytes: int | None  # measured, while resident
    estimated_bytes: int
    load_s: float | None  # of the last load
    loads: int
    idle_s: float | None  # since the last answer, while resident
    keep_alive_s: float | None
    error: str | None  # why the last load failed
    retry_after_s: float | None
    priority: int = 0
    answered_s_ago: float | None = None  # since a request was last answered to its end
    wake_s: float | None = None  # of the last wake
    host_bytes: int = 0  # host memory taken while asleep
    expected_s: float | None = None  # until it is ready, while somebody waits for it
    adapters: tuple[str, ...] = ()  # ids of the LoRA adapters that are in its engine
