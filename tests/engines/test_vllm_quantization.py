"""How models are quantized, and on what hardware vLLM computes with that."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from engines import vllm_quantization
from engines.base import EngineContext
from engines.vllm_args import refusal, serve_args
from engines.vllm_quantization import LEAST_CAPABILITY, Cpu, Quantization, detect, judge, this_cpu
from models.discovery.facts import quantization
from models.types import ModelOverrides, ModelSpec, Task

NOWHERE = Path("/nowhere")
AVX2, AVX512, AMX = Cpu(), Cpu(avx512=True), Cpu(avx512=True, amx=True)


def model(path: Path, settings: dict[str, Any] | None, **config: Any) -> ModelSpec:
    """A folder as discovery judges it."""
    whole = config | ({"quantization_config": settings} if settings else {})
    (path / "config.json").write_text(json.dumps(whole))
    return ModelSpec("m", path, Task.CHAT, "vllm", quantization=quantization(whole), fingerprint=json.dumps(whole))


def compressed(form: str, activations: bool = False, **weights: Any) -> dict[str, Any]:
    group = {"weights": weights, "input_activations": {"num_bits": 8} if activations else None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


# quantization_config, as published repositories have it; what is told of it; refused on Turing, Ampere, a plain CPU
PUBLISHED = [
    ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, "fp8 block", "-", "AMX"),
    ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", "-", "AMX"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}, "int4", "-", "AVX-512"),
    ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8", "-", "4 bits alone"),
    ({"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}, "int4", "-", "AVX-512"),
    (compressed("float-quantized", True, num_bits=8, type="float", strategy="channel"), "fp8", "-", "AMX"),
    (compressed("float-quantized", num_bits=8, type="float"), "fp8 weights only", "-", "no kernels"),
    (compressed("pack-quantized", num_bits=4, type="int", strategy="group"), "int4", "-", "AVX-512"),
    (compressed("pack-quantized", num_bits=8, type="int", strategy="channel"), "int8", "-", "4 bits alone"),
    (compressed("int-quantized", True, num_bits=8, type="int"), "int8 activations too", "-", "-"),
    (compressed("nvfp4-pack-quantized", True, num_bits=4, type="float"), "nvfp4", "-", "no kernels"),
    ({"quant_method": "mxfp4", "modules_to_not_convert": []}, "mxfp4", "8.0 (Ampere)", "mixtures of experts alone"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "-", "no kernels"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", "8.0 (Ampere)", "AMX"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "no such method", "no such method"),
    ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8", "gives it up", "gives it up"),
]


@pytest.mark.parametrize(("settings", "told", "turing", "cpu"), PUBLISHED)
def test_a_quantized_model_is_told_and_refused_where_it_cannot_be_computed(
    tmp_path: Path, settings: dict[str, Any], told: str, turing: str, cpu: str
) -> None:
    found = detect(model(tmp_path, settings))
    assert found is not None
    assert told in found.label
    for device, capability, expected in (("cuda", 75, turing), ("cpu", 0, cpu)):
        reason, refused = judge(found, device, capability, AVX2)
        assert bool(reason) == (expected == "-")
        assert expected == "-" or expected in refused
        assert found.label in reason + refused


def test_plain_weights_are_not_quantized(tmp_path: Path) -> None:
    assert detect(model(tmp_path, None)) is None


def test_modelopt_may_say_how_it_quantized_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    found = detect(ModelSpec("m", tmp_path, Task.CHAT, "vllm", quantization="modelopt"))
    assert found == Quantization("modelopt_fp4", "nvfp4", 4)


@pytest.mark.parametrize("odd", [[], {"config_groups": [1]}, {"config_groups": {"a": 3}}, {"bits": "four"}])
def test_odd_configurations_are_no_fault(tmp_path: Path, odd: Any) -> None:
    given = odd if isinstance(odd, dict) else {}
    assert detect(model(tmp_path, {"quant_method": "compressed-tensors", **given})) is not None


def test_quantized_experts_need_amx_on_a_cpu(tmp_path: Path) -> None:
    found = detect(model(tmp_path, {"quant_method": "gptq", "bits": 4}, num_experts=64))
    assert found is not None
    assert "AMX for quantized experts" in judge(found, "cpu", 0, AVX512)[1]
    assert judge(found, "cpu", 0, AMX)[1] == ""


def test_whether_a_gpu_has_such_numbers_itself_is_told() -> None:
    fp8 = Quantization("fp8", "fp8", 8)
    assert "saves memory, not time" in judge(fp8, "cuda", 86, AVX2)[0]
    assert "saves memory" not in judge(fp8, "cuda", 90, AVX2)[0]
    assert "saves memory" in judge(Quantization("modelopt_fp4", "nvfp4", 4), "cuda", 90, AVX2)[0]


def test_four_bits_need_avx512_on_x86_and_have_other_kernels_elsewhere() -> None:
    found = Quantization("awq", "int4", 4)
    refusals = [judge(found, "cpu", 0, cpu)[1] for cpu in (AVX2, AVX512, Cpu(x86=False))]
    assert "AVX-512" in refusals[0]
    assert refusals[1:] == ["", ""]


def test_the_cpu_s_instructions_are_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "amx").write_text("flags : sse2 avx512f amx_bf16 amx_tile amx_int8")
    (tmp_path / "avx2").write_text("flags : sse2 avx2")
    (tmp_path / "arm").write_text("Features : fp asimd bf16")
    assert [this_cpu(tmp_path / name) for name in ("amx", "avx2", "arm")] == [AMX, AVX2, Cpu(x86=False)]


def test_it_stands_in_the_model_s_reasons_and_in_its_refusal(tmp_path: Path) -> None:
    spec = model(tmp_path, {"quant_method": "mxfp4"})
    hopper, turing = (EngineContext(NOWHERE, NOWHERE, NOWHERE, "cuda", capability=number) for number in (90, 75))
    assert any("quantization mxfp4" in reason for reason in serve_args(spec, hopper).reasons)
    assert refusal(spec, hopper) == ""
    assert "needs a GPU of compute capability 8.0" in refusal(spec, turing)
    # the owner's word goes before ours
    told = ModelSpec("m", tmp_path, Task.CHAT, "vllm", overrides=ModelOverrides(engine_args={"quantization": "mxfp4"}))
    assert refusal(told, turing) == ""


def test_the_numbers_are_those_of_the_installed_vllm() -> None:
    """Should this fail, look at LEAST_CAPABILITY, and at what is new."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "model_executor/layers/quantization"
    listed = (folder / "__init__.py").read_text()
    methods = set(re.findall(r'^ {8}"([\w-]+)": \w+Config', listed, re.MULTILINE))
    ours = {*LEAST_CAPABILITY, *vllm_quantization.ALIASES, *vllm_quantization.DEPRECATED}
    assert methods - ours == {"online"}  # what vLLM quantizes itself, while it loads
    assert set(LEAST_CAPABILITY) - {"compressed-tensors", "mxfp8"} <= methods
    files = {"fp8": "fp8", "awq": "auto_awq", "gptq": "auto_gptq", "torchao": "torchao", "mxfp4": "mxfp4"}
    for method, name in files.items():
        least = re.search(
            r"def get_min_capability\(cls\) -> int:\n\s+return (\d+)", (folder / f"{name}.py").read_text()
        )
        assert least is not None
        assert LEAST_CAPABILITY[method] == max(75, int(least[1])), method
