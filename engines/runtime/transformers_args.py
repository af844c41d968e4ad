"""What the app tells the retrieval engine about one model, and what a user may override (`engine_args`)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from models.types import Method


class TransformersArgs(BaseModel):
    """Arguments of one engine process. Unknown names are errors, so that a misspelt override is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["embed", "rerank", "classify"]
    method: Method | None = None
    """How the model does its task; None: as its own modules say, or by sentence-transformers' default."""
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    """What computes the model on the CPU. `auto`: the fastest of those that can, measured at its first load here."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """`auto` or None: the model's own (on the CPU float32), or one of 16 bits where that is faster and as good."""
    cache_dir: str = ""
    """Where the choice and exported models are kept; given by the app. Without it torch computes."""
    fingerprint: str = ""
    """Of the model's folder, as the app knows it: another one means another choice."""
    body_path: str = ""
    """The exported model that `backend` runs; part of the choice."""
    trust_remote_code: bool = False
    allow_pickle: bool = False
    max_model_len: int | None = Field(default=None, ge=1)
    """Lowers the longest input, in tokens; it cannot raise what the model declares."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of a forward pass on the CPU, whatever computes it; None: as many as the cores that it may use."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one forward pass, padding included; an input that is longer runs alone. None: by device."""
    batch_items: int = Field(default=256, ge=1)
    max_waiting_tokens: int = Field(default=16_000_000, ge=1)
    """Tokens that may wait for their forward pass; beyond it requests get 503."""
    normalize: bool | None = None
    """True scales embeddings to length 1 also where the model's modules do not, and False leaves it to them. None: as
    False, but a text generator without modules.json embeds as such models are published, scaled."""

    @field_validator("method")
    @classmethod
    def _method_is_of_the_task(cls, method: Method | None, info: ValidationInfo) -> Method | None:
        task = info.data.get("task")
        if method is not None and task is not None and task != TASKS[method]:
            raise ValueError(f"{method} is how some models {TASKS[method]}, but this one is to {task}")
        return method

    @model_validator(mode="after")
    def _backend_suits(self) -> Self:
        if self.backend in ("onnx", "openvino") and self.device != "cpu":
            raise ValueError(f"backend {self.backend} is for the CPU; on {self.device} torch computes")
        if self.backend == "onnx" and self.dtype not in (None, "auto", "float32"):
            raise ValueError(f"backend onnx computes in float32, not in {self.dtype}")
        return self

    @property
    def resolved_dtype(self) -> str:
        """What torch loads: in float32 also what another library then computes, in whatever precision."""
        if self.device == "cuda":
            return self.dtype or "auto"
        return "float32" if self.dtype in (None, "auto") or self.backend in ("onnx", "openvino") else str(self.dtype)

    @property
    def resolved_batch_tokens(self) -> int:
        return self.batch_tokens or BATCH_TOKENS[self.device]


# On 2 CPU cores, all-MiniLM-L6-v2: 256 tokens a pass reach 0.87 of the best throughput, 512 reach 0.9, 1,024 all of it;
# and who arrives during a pass of 256, 512 or 1,024 waits up to 40, 75 or 130 ms. A GPU needs far more at once.
BATCH_TOKENS = {"cpu": 512, "cuda": 65_536}

UNDECLARED_MAX_TOKENS = 8192  # for models that declare no limit: attention over a 1 MB text would take all memory
STATIC_MAX_TOKENS = UNDECLARED_MAX_TOKENS * 64  # a mean of as many vectors takes no memory
MAX_TEXTS = 10_000  # of one request of TEI's or Cohere's clients

TASKS = {
    Method.MULTI_VECTOR: "embed",
    Method.SPARSE: "embed",
    Method.QWEN3_RERANKER: "rerank",
    Method.BGE_RERANKER: "rerank",
}
