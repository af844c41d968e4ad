"""What drafts tokens: found in the folder, or named in the configuration."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines.base import EngineContext
from engines.vllm_args import refusal, serve_args
from engines.vllm_memory import estimate_bytes
from engines.vllm_sleep import tiers
from engines.vllm_speculative import MTP_KEYS, choose
from models.types import ModelOverrides, ModelSpec, Task

NOWHERE = Path("/nowhere")
LAYERS = 2


def folder(path: Path, *tensors: str, **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS, **config}))
    save_file({name: np.zeros(8, np.float32) for name in ("model.layers.0.w", *tensors)}, path / "model.safetensors")
    return path


def spec(path: Path, speculative: str | None = None, **fields: Any) -> ModelSpec:
    fingerprint = "|".join(sorted(str(entry) for entry in path.rglob("*")))
    given = {"overrides": ModelOverrides(speculative=speculative), "fingerprint": fingerprint, **fields}
    return ModelSpec("m", path, Task.CHAT, "vllm", **given)


def context(device: str = "cuda", models_dir: Path | None = None) -> EngineContext:
    return EngineContext(NOWHERE, NOWHERE, NOWHERE, device, models_dir=models_dir)


def test_a_head_for_further_tokens_is_used_where_its_weights_are_there(tmp_path: Path) -> None:
    whole = folder(tmp_path / "whole", f"model.layers.{LAYERS}.eh_proj", num_nextn_predict_layers=1)
    without = folder(tmp_path / "without", num_nextn_predict_layers=1)
    found = choose(spec(whole, model_type="deepseek_v3"), "cuda", None)
    assert found.config == {"method": "mtp", "num_speculative_tokens": 1}
    assert "MTP" in found.reason
    assert choose(spec(without, model_type="deepseek_v3"), "cuda", None).config is None
    nested = folder(tmp_path / "nested", "mtp.fc.weight", text_config={"mtp_num_hidden_layers": 1})
    assert choose(spec(nested, model_type="qwen3_5"), "cuda", None).config == found.config


def test_on_a_cpu_and_where_it_is_switched_off_nothing_is_drafted(tmp_path: Path) -> None:
    path = folder(tmp_path, "mtp.fc.weight", num_nextn_predict_layers=1)
    on_cpu = choose(spec(path, model_type="qwen3_next"), "cpu", None)
    assert on_cpu.config is None
    assert "CPU" in on_cpu.reason
    off = choose(spec(path, "off", model_type="qwen3_next"), "cuda", None)
    assert (off.config, off.reason) == (None, "speculative decoding: off, configured for this model")


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("LlamaForCausalLMEagle3", "eagle3"), ("EagleLlamaForCausalLM", "eagle"), ("DFlashDraftModel", "dflash")],
)
def test_a_head_in_a_folder_of_the_model_s_is_used(tmp_path: Path, architecture: str, method: str) -> None:
    path = folder(tmp_path / "model")
    head = folder(path / "head", architectures=[architecture])
    model = spec(path)
    config = choose(model, "cuda", None).config
    assert config == {"method": method, "model": str(head), "num_speculative_tokens": 3}
    args = serve_args(model, context()).args
    assert json.loads(args[args.index("--speculative-config") + 1]) == config
    without = spec(path, "off")
    assert estimate_bytes(model, context()) - estimate_bytes(without, context()) == head_bytes(head)
    assert tiers(model, "cuda", False, {}).levels == (1,)
    assert tiers(without, "cuda", False, {}).levels == (1, 2)


def head_bytes(head: Path) -> int:
    return (head / "model.safetensors").stat().st_size


def test_a_head_of_pickles_or_with_code_of_its_own_is_left_alone(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    pickled = folder(path / "a", architectures=["LlamaForCausalLMEagle3"])
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    folder(path / "b", architectures=["LlamaForCausalLMEagle3"], auto_map={"AutoModel": "x.Y"})
    assert choose(spec(path), "cuda", None).config is None


def test_a_head_is_used_as_long_as_it_is_there_in_full(tmp_path: Path) -> None:
    model = spec(folder(tmp_path / "model"), fingerprint="of the model's own files")
    assert choose(model, "cuda", None).config is None
    weights = folder(model.path / "head", architectures=["LlamaForCausalLMEagle3"]) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert choose(model, "cuda", None).config is None
    weights.write_bytes(whole)
    assert choose(model, "cuda", None).config is not None
    shutil.rmtree(model.path / "head")
    assert choose(model, "cuda", None).config is None


def test_a_draft_s_links_may_not_lead_out_of_where_it_is(tmp_path: Path) -> None:
    elsewhere = folder(tmp_path / "elsewhere/head", architectures=["LlamaForCausalLMEagle3"])
    models_dir = tmp_path / "models"
    linked, beside = folder(models_dir / "linked"), folder(models_dir / "beside")
    (linked / "head").symlink_to(elsewhere)
    head = folder(beside / "head", architectures=["LlamaForCausalLMEagle3"])
    (head / "model.safetensors").unlink()
    (head / "model.safetensors").symlink_to(elsewhere / "model.safetensors")
    for path in (linked, beside):
        assert choose(spec(path), "cuda", models_dir).config is None
    assert "symbolic link out of" in choose(spec(beside, "linked/head"), "cuda", models_dir).refusal
    assert choose(spec(beside, str(elsewhere)), "cuda", models_dir).config is not None


def test_the_links_of_hugging_face_s_cache_are_followed(tmp_path: Path) -> None:
    cached = tmp_path / "models--org--large"
    path = folder(cached / "snapshots/abc")
    head = folder(path / "head", architectures=["LlamaForCausalLMEagle3"])
    (cached / "blobs").mkdir()
    (head / "model.safetensors").rename(cached / "blobs/0")
    (head / "model.safetensors").symlink_to("../../../blobs/0")
    assert choose(spec(path), "cuda", tmp_path).draft == head


def test_a_draft_is_named_by_its_id_in_the_models_folder_or_by_its_path(tmp_path: Path) -> None:
    path = folder(tmp_path / "org/large")
    small = folder(tmp_path / "org/small", architectures=["Qwen3ForCausalLM"])
    cached = folder(tmp_path / "models--org--head/snapshots/abc", architectures=["LlamaForCausalLMEagle3"])
    for name, found, method in (
        ("org/small", small, "draft_model"),
        (str(small), small, "draft_model"),
        ("org/head", cached, "eagle3"),
    ):
        config = choose(spec(path, name), "cpu", tmp_path).config
        assert config == {"method": method, "model": str(found), "num_speculative_tokens": 3}
    assert choose(spec(path, "ngram"), "cpu", None).config == {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "prompt_lookup_max": 4,
    }


def test_of_a_draft_s_revisions_in_the_cache_the_newest_is_used(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--head"
    revisions = [folder(cache / "snapshots" / name, architectures=["LlamaForCausalLMEagle3"]) for name in "abc"]
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("b\n")
    assert choose(spec(folder(tmp_path / "large"), "org/head"), "cpu", tmp_path).draft == revisions[1]


@pytest.mark.parametrize("name", ["org/nobody", "../elsewhere", "/nowhere/at/all"])
def test_a_draft_that_is_not_there_refuses_its_model(tmp_path: Path, name: str) -> None:
    folder(tmp_path.parent / "elsewhere")
    model = spec(folder(tmp_path / "large"), name)
    assert f"speculative: '{name}' is no model" in refusal(model, context(models_dir=tmp_path))


def test_what_engine_args_say_goes_before_what_is_found(tmp_path: Path) -> None:
    path = folder(tmp_path, "mtp.fc.weight", num_nextn_predict_layers=1)
    given = ModelOverrides(engine_args={"speculative_config": {"method": "suffix"}})
    args = serve_args(spec(path, model_type="qwen3_next", overrides=given), context()).args
    assert json.loads(args[args.index("--speculative-config") + 1]) == {"method": "suffix"}
    none = ModelOverrides(engine_args={"speculative_config": None})
    assert "--speculative-config" not in serve_args(spec(path, model_type="qwen3_next", overrides=none), context()).args


def test_every_model_with_such_a_head_is_one_of_the_installed_vllm_s() -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations
    source = (Path(found.submodule_search_locations[0]) / "config/speculative.py").read_text()
    architectures = {
        "mimo": "MiMoForCausalLM",
        "glm4_moe": "Glm4MoeForCausalLM",
        "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    }
    assert [name for name in MTP_KEYS if f'"{architectures.get(name, name)}"' not in source] == []
    assert [key for key in set(MTP_KEYS.values()) if f'"{key}"' not in source] == []
