"""Over how many GPUs and machines a model is spread, and what vLLM makes of a device by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import vllm_hardware
from engines.base import EngineContext
from engines.vllm_args import is_unusual, refusal, serve_args
from engines.vllm_memory import OVERHEAD_BYTES, estimate_bytes, gpu_spread, kv_bytes_per_token
from models.types import ModelOverrides, ModelSpec, Task

NOWHERE = Path("/nowhere")
GIB = 1024**3
BUDGET = 70 * GIB


def model(path: Path, weights_gib: int, *, heads: int = 64, **engine_args: Any) -> ModelSpec:
    (path / "config.json").write_text(json.dumps({"num_attention_heads": heads, "kv_lora_rank": None}))
    shape = {"num_layers": 80, "num_kv_heads": 8, "head_dim": 128, "max_model_len": 32768}
    overrides = ModelOverrides(engine_args=engine_args)
    size = weights_gib * GIB
    return ModelSpec(
        "m", path, Task.CHAT, "vllm", weights_bytes=size, fingerprint=str(heads), overrides=overrides, **shape
    )


def context(gpus: int, device: str = "cuda", **fields: Any) -> EngineContext:
    return EngineContext(NOWHERE, NOWHERE, NOWHERE, device, budget_bytes=BUDGET, gpus=gpus, **fields)


@pytest.mark.parametrize(
    ("weights_gib", "gpus", "heads", "tensor", "pipeline"),
    [
        (16, 8, 64, 1, 1),  # it fits one
        (140, 8, 64, 4, 1),  # three would hold it, but heads are not cut in three
        (100, 2, 64, 2, 1),
        (140, 3, 63, 1, 3),  # heads cannot be cut: layers are
        (140, 1, 64, 1, 1),  # there is but one: refused by its size, as ever
        (900, 8, 64, 1, 1),  # nor do all hold it
    ],
)
def test_a_model_takes_as_few_gpus_as_hold_it(
    tmp_path: Path, weights_gib: int, gpus: int, heads: int, tensor: int, pipeline: int
) -> None:
    spec = model(tmp_path, weights_gib, heads=heads)
    spread = gpu_spread(spec, context(gpus))
    assert (spread.tensor, spread.pipeline) == (tensor, pipeline)
    args = serve_args(spec, context(gpus)).args
    assert ("--tensor-parallel-size" in args, "--pipeline-parallel-size" in args) == (tensor > 1, pipeline > 1)
    assert is_unusual(spec, context(gpus)) == (tensor * pipeline > 1)


def test_a_longer_context_than_the_models_is_worth_a_look_before_the_start(tmp_path: Path) -> None:
    spec = model(tmp_path, 16)
    for length, unusual in ((16384, False), (32768, False), (32769, True)):
        assert is_unusual(replace(spec, overrides=ModelOverrides(max_model_len=length)), context(1)) == unusual


def test_what_is_counted_is_its_share_of_the_first_gpu(tmp_path: Path) -> None:
    spec, four = model(tmp_path, 140), context(4)
    assert gpu_spread(spec, four).gpus == 4
    alone = kv_bytes_per_token(model(tmp_path, 16), four)
    assert alone is not None
    assert kv_bytes_per_token(spec, four) == alone // 4
    assert 35 * GIB + OVERHEAD_BYTES["cuda"] < estimate_bytes(spec, four) <= BUDGET


def test_settings_go_before_what_fits(tmp_path: Path) -> None:
    spec = model(tmp_path, 140, tensor_parallel_size=2, pipeline_parallel_size=2)
    spread = gpu_spread(spec, context(4))
    assert (spread.tensor, spread.pipeline, spread.refusal) == (2, 2, "")
    reasons = serve_args(spec, context(4)).reasons
    assert "4 GPU(s): configured" in reasons


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tensor-parallel-size": 4}, "needs 4 GPUs on each machine, and 2 are here"),
        ({"tensor-parallel-size": "two"}, "are numbers from 1 on"),
        ({"distributed-executor-backend": "ray", "tensor-parallel-size": 8}, "ray is not installed here"),
        ({"nnodes": 2, "tensor-parallel-size": 4}, "2 machines need master-addr"),
        ({"nnodes": 3, "tensor-parallel-size": 4, "master-addr": "10.0.0.1"}, "spread evenly over 3 machines"),
        ({"nnodes": 2, "tensor-parallel-size": 4, "master-addr": "10.0.0.1", "node-rank": 1}, "is number 0"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    assert told in refusal(model(tmp_path, 16, **given), context(2))


def test_a_cpu_has_no_ray(tmp_path: Path) -> None:
    spec = model(tmp_path, 16, **{"distributed-executor-backend": "ray"})
    assert "vLLM does not use ray on a CPU" in refusal(spec, context(0, "cpu"))


def test_what_runs_on_other_machines_is_told(tmp_path: Path) -> None:
    given = {"nnodes": 2, "master-addr": "10.0.0.1", "tensor-parallel-size": 2, "pipeline-parallel-size": 2}
    spec = model(tmp_path, 140, **given)
    assert refusal(spec, context(2)) == ""
    command = next(reason for reason in serve_args(spec, context(2)).reasons if reason.startswith("on machine 1 run: "))
    assert command.startswith(f"on machine 1 run: vllm serve {tmp_path} ")
    assert command.endswith("--headless --node-rank 1")
    assert "--nnodes 2" in command
    assert "--master-addr 10.0.0.1" in command


@pytest.mark.parametrize(
    ("capability", "mla", "backend"),
    [
        (75, False, "FLASHINFER"),
        (86, False, "FLASH_ATTN"),
        (90, False, "FLASH_ATTN"),
        (100, False, "FLASHINFER"),
        (90, True, "FLASH_ATTN_MLA"),
        (100, True, "FLASHINFER_MLA"),
        (120, True, "TRITON_MLA"),
    ],
)
def test_the_attention_backend_is_told_by_the_gpu(capability: int, mla: bool, backend: str) -> None:
    assert vllm_hardware.attention_backend(capability, mla=mla) == backend


def test_graphs_and_prefixes_are_told(tmp_path: Path) -> None:
    told = "; ".join(vllm_hardware.reasons(model(tmp_path, 1), "cuda", 90))
    assert "at compute capability 9.0 first FLASH_ATTN" in told
    assert "CUDA graphs" in told
    assert "prefix caching: on" in told
    assert "eager" in "; ".join(vllm_hardware.reasons(model(tmp_path, 1), "cpu", 0))
