"""How a model's weights are quantized, and whether this hardware can compute with them in vLLM 0.32.

The numbers are the compute capabilities of vLLM's `get_min_capability` (model_executor/layers/quantization; 7.5 at the
least, as its CUDA 13 wheels have nothing older), and for the CPU what its platform has kernels for
(model_executor/kernels/linear, layers/fused_moe/experts/cpu_moe.py). A test compares them with the installed sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engines.model_config import number, read_config, read_json, text_part
from models.types import ModelSpec

OLDEST_CAPABILITY = 75  # Turing
# By the name that vLLM gives a method: the first compute capability, ten times it, that has kernels for it.
LEAST_CAPABILITY = {
    "awq": 75,
    "gptq": 75,
    "fp8": 75,
    "compressed-tensors": 75,
    "experts_int8": 80,
    "humming": 75,
    "inc": 75,
    "modelopt": 80,
    "modelopt_fp4": 75,
    "modelopt_mxfp8": 80,
    "modelopt_mixed": 75,
    "moe_wna16": 75,
    "mxfp4": 80,
    "mxfp8": 80,
    "quark": 75,
    "torchao": 75,
}
# Taken up to 0.31, and refused by 0.32 unless asked for (--allow-deprecated-quantization).
DEPRECATED = frozenset({"fbgemm_fp8", "fp_quant"})
NATIVE_FP8, NATIVE_FP4 = 89, 100
# Other names for the same, as repositories write them.
ALIASES = {"auto-round": "inc", "auto_round": "inc", "auto_gptq": "gptq", "gptq_marlin": "gptq", "awq_marlin": "awq"}
ALIASES |= {"auto_awq": "awq", "compressed_tensors": "compressed-tensors", "gpt_oss_mxfp4": "mxfp4"}
_MODELOPT = {"FP8": "modelopt", "NVFP4": "modelopt_fp4", "MXFP8": "modelopt_mxfp8", "MIXED_PRECISION": "modelopt_mixed"}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_NOT_ON_CPU = frozenset({"nvfp4", "mxfp8", "fp8_weights_only", "modelopt_mixed", "humming", "experts_int8"})
GENERATIONS = {75: "Turing", 80: "Ampere", 89: "Ada", 90: "Hopper", 100: "Blackwell"}


@dataclass(frozen=True, slots=True)
class Quantization:
    """`method` as vLLM calls it, `scheme` the kind of numbers ("fp8", "fp8_block", "int8", "int4", …), both for people.

    `bits` of a weight, 0 where the configuration does not say.
    """

    method: str
    scheme: str = ""
    bits: int = 0
    experts: bool = False  # a mixture of experts, which has kernels of its own

    @property
    def label(self) -> str:
        return f"{self.method} ({self.scheme.replace('_', ' ')})" if self.scheme else self.method


@dataclass(frozen=True, slots=True)
class Cpu:
    """What vLLM's CPU builds go by. On other processors than x86 they have kernels of their own."""

    x86: bool = True
    avx512: bool = False
    amx: bool = False


def detect(spec: ModelSpec) -> Quantization | None:
    """What the model's folder says; None for plain weights."""
    config = read_config(spec)
    given = _settings(config)
    if not given and spec.quantization == "modelopt":
        given = _object(read_json(spec.path / "hf_quant_config.json").get("quantization"))
    method = spec.quantization or ""
    if not method:
        return None
    method = ALIASES.get(method.lower(), method.lower())
    algorithm = str(given.get("quant_algo", "")).upper()
    if method == "modelopt":
        method = next((name for key, name in _MODELOPT.items() if algorithm.startswith(key)), method)
    scheme, bits = _scheme(method, given)
    return Quantization(method, scheme, bits, bool(number(config, *_EXPERTS)))


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for part in (config, text_part(config)):
        for key in ("quantization_config", "compression_config"):
            if isinstance(found := part.get(key), dict):
                return found
    return {}


def _scheme(method: str, given: Mapping[str, Any]) -> tuple[str, int]:
    if method in ("gptq", "awq", "inc"):
        bits = _whole(given.get("bits")) or _whole(given.get("w_bit")) or 4
        return f"int{bits}", bits
    if method == "fp8":
        return ("fp8_block" if given.get("weight_block_size") else "fp8"), 8
    if method == "compressed-tensors":
        return _compressed(given)
    known = {"mxfp4": ("mxfp4", 4), "modelopt_fp4": ("nvfp4", 4), "modelopt": ("fp8", 8), "experts_int8": ("int8", 8)}
    known |= {"mxfp8": ("mxfp8", 8), "modelopt_mxfp8": ("mxfp8", 8)}
    return known.get(method, ("", 0))


def _compressed(given: Mapping[str, Any]) -> tuple[str, int]:
    """Of the first group of layers; almost all models have one."""
    groups = _object(given.get("config_groups"))
    group = next(map(_object, groups.values()), _object(None))
    weights = _object(group.get("weights"))
    form, kind, bits = str(given.get("format", "")), str(weights.get("type", "")), _whole(weights.get("num_bits"))
    form = str(group.get("format") or form)
    for name in ("nvfp4", "mxfp4", "mxfp8"):
        if name in form:
            return name, bits or 4
    plain = not isinstance(group.get("input_activations"), dict)
    if kind == "float" and bits == 8 and plain:
        return "fp8_weights_only", 8
    if kind == "float" and bits == 8:
        return ("fp8_block" if weights.get("strategy") == "block" else "fp8"), 8
    if kind == "int" and bits:
        return (f"int{bits}" if plain else f"int{bits}_activations_too"), bits
    return "", bits


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int:
    return value if type(value) is int and 0 < value <= 16 else 0


def judge(found: Quantization, device: str, capability: int, cpu: Cpu) -> tuple[str, str]:
    """(reason, refusal): how it is computed with here, or why it cannot be; one of both is "".

    `capability` of the GPU, ten times: 90 for 9.0, 0 where it is not known.
    """
    name = f"quantization {found.label}"
    if found.method in DEPRECATED:
        return "", f"{name}: vLLM gives it up; get the FP8 or compressed-tensors version of the model"
    if found.method not in LEAST_CAPABILITY:
        return "", f"{name}: vLLM 0.32 has no such method; get a GPTQ, AWQ, FP8 or compressed-tensors version"
    if device == "cpu":
        refusal = _cpu_refusal(found, cpu)
        return ("", f"{name}: {refusal}") if refusal else (f"{name}: as the model's config says", "")
    least = max(OLDEST_CAPABILITY, _least(found))
    if capability and capability < least:
        since = GENERATIONS.get(least, "")
        return "", (
            f"{name}: needs a GPU of compute capability {least / 10:.1f} ({since}) or later; this one has "
            f"{capability / 10:.1f}"
        )
    return f"{name}: as the model's config says{_native(found, capability)}", ""


def _least(found: Quantization) -> int:
    return 80 if found.scheme in ("mxfp4", "mxfp8") else LEAST_CAPABILITY[found.method]


def _native(found: Quantization, capability: int) -> str:
    """What a GPU without units for such numbers does instead."""
    native = {"fp8": NATIVE_FP8, "fp8_block": NATIVE_FP8, "nvfp4": NATIVE_FP4, "mxfp4": NATIVE_FP4, "mxfp8": NATIVE_FP4}
    if capability and capability < native.get(found.scheme, 0):
        return f"; compute capability {capability / 10:.1f} computes in 16 bits, so that it saves memory, not time"
    return ""


def _cpu_refusal(found: Quantization, cpu: Cpu) -> str:
    gpu = "it needs a GPU"
    if found.scheme in _NOT_ON_CPU or found.method in _NOT_ON_CPU:
        return f"vLLM has no kernels for it on a CPU; {gpu}"
    if found.scheme == "mxfp4" and not found.experts:
        return f"vLLM has it on a CPU for mixtures of experts alone; {gpu}"
    if found.scheme == f"int{found.bits}" and found.bits != 4:
        return f"on a CPU vLLM has it with 4 bits alone; {gpu}"
    # Without AMX vLLM would take kernels of torch's, for which its CPU builds cannot quantize the inputs.
    needs_amx = found.experts or found.scheme in ("fp8", "fp8_block", "mxfp4")
    if cpu.x86 and needs_amx and not cpu.amx:
        kind = "quantized experts" if found.experts else "such weights"
        return f"on a CPU vLLM needs AMX for {kind} (Sapphire Rapids or later), which this one has not; or {gpu}"
    # The kernel is in the builds for AVX-512 alone; others start, and end with the first request.
    if cpu.x86 and found.bits == 4 and not cpu.avx512:
        return f"on a CPU vLLM needs AVX-512 for 4 bits, which this one has not; or {gpu}"
    return ""


@cache
def this_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    try:
        flags = set(cpuinfo.read_text().split())
    except OSError:
        flags = set()
    return Cpu(x86="sse2" in flags, avx512="avx512f" in flags, amx="amx_tile" in flags)
