"""vLLM's arguments and the reasons for them, for models as people have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineContext
from engines.vllm_args import NO_MEDIA_DOMAIN, BadEngineArgument, ServeArgs
from engines.vllm_args import serve_args as serve_args_in
from models.types import ModelOverrides, ModelSpec, Task

NOWHERE = Path("/nowhere")


def spec(path: Path, **fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": "org/model", "path": path, "task": Task.CHAT, "engine": "vllm", **fields})


def serve_args(model: ModelSpec, device: str, adapters: Sequence[ModelSpec] = (), **settings: Any) -> ServeArgs:
    return serve_args_in(model, EngineContext(NOWHERE, NOWHERE, NOWHERE, device, **settings), adapters)


def value(serve: ServeArgs, name: str) -> str | None:
    """What follows `--name`; "" for a bare flag; None where it is not given."""
    if f"--{name}" not in serve.args:
        return None
    following = serve.args[serve.args.index(f"--{name}") + 1 :]
    return following[0] if following and not following[0].startswith("--") else ""


def test_the_model_is_served_under_its_id_and_aliases(tmp_path: Path) -> None:
    args = serve_args(spec(tmp_path, aliases=("a", "b")), device="cpu").args
    at = args.index("--served-model-name")
    assert args[at + 1 : at + 4] == ("org/model", "a", "b")
    assert args[:2] == ("--model", str(tmp_path))


def test_cpu_is_eager_and_cuda_asks_for_no_share_of_the_device(tmp_path: Path) -> None:
    cpu, cuda = (serve_args(spec(tmp_path), device=device) for device in ("cpu", "cuda"))
    assert (value(cpu, "enforce-eager"), value(cuda, "enforce-eager")) == ("", None)
    assert (value(cpu, "gpu-memory-utilization"), value(cuda, "gpu-memory-utilization")) == (None, "0.01")


def test_nothing_is_fetched_and_no_code_of_the_folder_runs_unless_configured(tmp_path: Path) -> None:
    serve = serve_args(spec(tmp_path), device="cpu")
    assert value(serve, "allowed-media-domains") == NO_MEDIA_DOMAIN
    assert value(serve, "allowed-local-media-path") is None
    assert value(serve, "trust-remote-code") is None
    trusted = serve_args(spec(tmp_path, overrides=ModelOverrides(trust_remote_code=True)), device="cpu")
    assert value(trusted, "trust-remote-code") == ""


def test_structured_output_allows_no_free_white_space(tmp_path: Path) -> None:
    config = json.loads(value(serve_args(spec(tmp_path), device="cpu"), "structured-outputs-config") or "")
    assert config == {"backend": "xgrammar", "disable_any_whitespace": True}


def test_configured_arguments_replace_add_and_remove(tmp_path: Path) -> None:
    overrides = ModelOverrides(
        engine_args={
            "max_num_seqs": 8,
            "--enforce-eager": False,
            "disable-uvicorn-access-log": None,
            "allowed_media_domains": ["a.example", "b.example"],
            "speculative_config": {"method": "ngram"},
        }
    )
    serve = serve_args(spec(tmp_path, overrides=overrides), device="cpu", engine_args={"max-num-seqs": 4})
    assert value(serve, "max-num-seqs") == "8"
    assert "--no-enforce-eager" in serve.args
    assert "--enforce-eager" not in serve.args
    assert value(serve, "disable-uvicorn-access-log") is None
    at = serve.args.index("--allowed-media-domains")
    assert serve.args[at + 1 : at + 3] == ("a.example", "b.example")
    assert value(serve, "speculative-config") == '{"method": "ngram"}'
    assert "max-num-seqs: configured for this model" in serve.reasons


@pytest.mark.parametrize("key", ["uds", "--host", "port", "api_key", "served_model_name", "model"])
def test_arguments_that_the_router_depends_on_are_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadEngineArgument, match=key):
        serve_args(spec(tmp_path, overrides=ModelOverrides(engine_args={key: "x"})), device="cpu")


def test_the_size_of_the_kv_cache_has_a_setting_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(BadEngineArgument, match="set kv_cache_bytes instead"):
        serve_args(spec(tmp_path), device="cpu", engine_args={"kv_cache_memory_bytes": "8G"})


TOOLS = "{% if tools %}{% endif %}"


def test_a_completion_model_gets_no_parsers(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TOOLS + "<tool_call>")
    base = serve_args(spec(tmp_path, task=Task.COMPLETION), device="cpu")
    chat = serve_args(spec(tmp_path), device="cpu")
    assert value(base, "tool-call-parser") is None
    assert (value(chat, "tool-call-parser"), value(chat, "enable-auto-tool-choice")) == ("hermes", "")
