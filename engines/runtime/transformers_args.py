"""What the app tells the retrieval engine about one model, and what a user may override (`engine_args`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from models.types import Method


class TransformersArgs(BaseModel):
    """Arguments of one engine process. Unknown names are errors, so that a misspelt override is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["embed", "rerank", "classify"]
    method: Method | None = None
    """How the model does its task; None: as its own modules say, or by sentence-transformers' default."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """None: float32 on the CPU (the exact choice, and most CPUs' fastest), the model's own on CUDA."""
    trust_remote_code: bool = False
    allow_pickle: bool = False
    max_model_len: int | None = Field(default=None, ge=1)
    """Lowers the longest input, in tokens; it cannot raise what the model declares."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of a forward pass on the CPU; None: as many as the cores that this process may use."""
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

    @property
    def resolved_dtype(self) -> str:
        return self.dtype or ("auto" if self.device == "cuda" else "float32")

    @property
    def resolved_batch_tokens(self) -> int:
        return self.batch_tokens or BATCH_TOKENS[self.device]


# On 2 CPU cores, all-MiniLM-L6-v2: 256 tokens a pass reach 0.87 of the best throughput, 512 reach 0.9, 1,024 all of it;
# and who arrives during a pass of 256, 512 or 1,024 waits up to 40, 75 or 130 ms. A GPU needs far more at once.
BATCH_TOKENS = {"cpu": 512, "cuda": 65_536}

TASKS = {
    Method.MULTI_VECTOR: "embed",
    Method.SPARSE: "embed",
    Method.QWEN3_RERANKER: "rerank",
    Method.BGE_RERANKER: "rerank",
}
