"""What vLLM makes of a device by itself: attention kernels, compiled graphs, kept prefixes. For people to read.

Roundhouse leaves these to vLLM, which knows its kernels best, and says what comes of it; each can be set by
`engine_args` (`attention-backend`, `enforce-eager`, `enable-prefix-caching`).
"""

from __future__ import annotations

from engines.model_config import read_config, text_part
from models.types import ModelSpec

# Of vLLM 0.32's platforms/cuda.py: the first that it tries, by the generation of the GPU. MLA: DeepSeek's attention.
_FIRST = {10: "FLASHINFER"}
_FIRST_MLA = {10: "FLASHINFER_MLA", 12: "TRITON_MLA"}
_OTHERS, _OTHERS_MLA, _TURING = "FLASH_ATTN", "FLASH_ATTN_MLA", "FLASHINFER"
_WITHOUT_ATTENTION = frozenset({"mamba", "mamba2", "falcon_mamba"})


def attention_backend(capability: int, *, mla: bool) -> str:
    """The first that vLLM tries on a GPU of `capability`, ten times it; the next ones take what that one cannot."""
    generation = capability // 10
    if mla:
        return _FIRST_MLA.get(generation, _OTHERS_MLA)
    return _TURING if generation < 8 else _FIRST.get(generation, _OTHERS)


def reasons(spec: ModelSpec, device: str, capability: int) -> list[str]:
    prefixes = "off, as vLLM has none for this kind of model" if spec.model_type in _WITHOUT_ATTENTION else "on"
    told = [f"prefix caching: {prefixes}"]
    if device == "cpu":
        return ["eager: on CPU compiling takes longer than it saves", *told]
    told.insert(0, "CUDA graphs: compiled and captured, and kept for the next start; enforce-eager: true starts sooner")
    if capability:
        mla = bool(text_part(read_config(spec)).get("kv_lora_rank"))
        first = attention_backend(capability, mla=mla)
        told.insert(0, f"attention backend: vLLM's choice; at compute capability {capability / 10:.1f} first {first}")
    return told
