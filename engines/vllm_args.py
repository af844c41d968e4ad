"""The command line of vLLM's server for one model, with the reason for each decision. Starts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines import vllm_hardware, vllm_lora, vllm_parallel, vllm_quantization, vllm_sleep, vllm_speculative
from engines.base import EngineContext
from engines.vllm_families import TEKKEN, read_template, reasoning_parser, tool_parser
from engines.vllm_memory import (
    argument_name,
    given_arguments,
    gpu_spread,
    kv_bytes_per_token,
    kv_cache,
    tokens_bytes,
)
from models.types import ModelSpec, Task

# vLLM fetches image URLs from anywhere unless domains are named. This one cannot exist (RFC 6761), so that nothing is
# fetched, from our own network least of all; images as data: URLs work.
NO_MEDIA_DOMAIN = "media-urls-are-not-allowed.invalid"

# What the seam between router and engine rests on; a configuration that sets these gets a refusal.
RESERVED = frozenset({"model", "uds", "host", "port", "api-key", "root-path", "served-model-name", "ssl-keyfile"})
# What the estimate of memory rests on, and the setting of ours that says it.
OUR_SETTINGS = {"kv-cache-memory-bytes": "kv_cache_bytes"}


class BadEngineArgument(ValueError):
    """The configuration's engine_args hold something that cannot be passed on; the message names it."""


@dataclass(frozen=True, slots=True)
class ServeArgs:
    """`args` for vLLM's server, less --uds; `reasons` in words; `kv_cache_bytes` as asked for."""

    args: tuple[str, ...]
    reasons: tuple[str, ...]
    kv_cache_bytes: int


@dataclass(slots=True)
class _Draft:
    """Collects arguments by name, so that a configured one replaces the derived one."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def set(self, name: str, value: Any, reason: str = "") -> None:
        self.values[name] = value
        self.because(reason)

    def because(self, reason: str) -> None:
        if reason:
            self.reasons.append(reason)


def serve_args(spec: ModelSpec, context: EngineContext, adapters: Sequence[ModelSpec] = ()) -> ServeArgs:
    """Arguments for `spec` with `context`'s device, memory and settings; those of `spec.overrides` come first.

    Reads the model's chat template and the adapters' configurations. Raises BadEngineArgument.
    """
    draft = _Draft()
    lora = vllm_lora.arguments(spec, context, adapters)
    kv_bytes, kv_reason = kv_cache(spec, context, lora.device_bytes)
    draft.set("model", str(spec.path))
    draft.set("served-model-name", [spec.id, *spec.aliases])
    draft.set("kv-cache-memory-bytes", kv_bytes, kv_reason)
    _set_length(draft, spec, kv_bytes, kv_bytes_per_token(spec, context))
    _set_hardware(draft, spec, context)
    _set_speculation(draft, vllm_speculative.choose(spec, context.device, context.models_dir))
    _set_parsers(draft, spec)
    _set_adapters(draft, lora)
    _set_sleep(draft, vllm_sleep.tiers(spec, context.device, bool(adapters), context.engine_args))
    _set_safety(draft, spec)
    _set_configured(draft, context.engine_args, "for all models of this engine")
    _set_configured(draft, spec.overrides.engine_args, "for this model")
    args = tuple(_flatten(draft.values))
    draft.reasons += vllm_parallel.commands_elsewhere(args, gpu_spread(spec, context).nodes)
    return ServeArgs(args, tuple(draft.reasons), kv_bytes)


def _set_length(draft: _Draft, spec: ModelSpec, kv_bytes: int, per_token: int | None) -> None:
    if spec.overrides.max_model_len is not None:
        length = spec.overrides.max_model_len
        draft.set("max-model-len", length, f"length {length}: configured for this model")
        return
    if spec.max_model_len and per_token and tokens_bytes(per_token, spec.max_model_len) <= kv_bytes:
        draft.set("max-model-len", spec.max_model_len, f"length {spec.max_model_len}: the config's, and it fits")
        return
    # vLLM's own arithmetic knows sliding windows and compressed attention, where ours would cut far too short.
    about = f", by our count {kv_bytes // per_token} tokens" if per_token else ""
    wanted = f"the config's {spec.max_model_len}" if spec.max_model_len else "the config's length"
    draft.set("max-model-len", "auto", f"length: what the KV cache holds{about}; {wanted} may not fit")


def _set_hardware(draft: _Draft, spec: ModelSpec, context: EngineContext) -> None:
    spread = gpu_spread(spec, context)
    draft.because(spread.reason)
    for name, size in spread.arguments().items():
        draft.set(name, size)
    draft.because(_quantization(spec, context)[0])
    for reason in vllm_hardware.reasons(spec, context.device, context.capability):
        draft.because(reason)
    if context.device == "cpu":
        draft.set("enforce-eager", True)
        return
    # A share of the whole device is asked for at start even where the KV cache is given in bytes, and refused while
    # neighbours hold memory.
    draft.set("gpu-memory-utilization", 0.01, "memory by bytes, not by share of the device, which has other tenants")


def _quantization(spec: ModelSpec, context: EngineContext) -> tuple[str, str]:
    found = vllm_quantization.detect(spec)
    if found is None:
        return "", ""
    return vllm_quantization.judge(found, context.device, context.capability, vllm_quantization.this_cpu())


def _set_speculation(draft: _Draft, speculation: vllm_speculative.Speculation) -> None:
    draft.because(speculation.reason)
    if speculation.config:
        draft.set(vllm_speculative.OPTION, speculation.config)


def refusal(spec: ModelSpec, context: EngineContext) -> str:
    """Why vLLM cannot serve `spec` here as it is and is configured, as far as that shows without vLLM; "" if it can."""
    given = given_arguments(spec, context)
    try:
        for arguments in (context.engine_args, spec.overrides.engine_args):
            _set_configured(_Draft(), arguments, "")
    except BadEngineArgument as error:
        return str(error)
    speculation = vllm_speculative.choose(spec, context.device, context.models_dir)
    # Whoever says how it is quantized, or drafted, has the last word, and vLLM's answer.
    told = ("" if "quantization" in given else _quantization(spec, context)[1]) or (
        "" if vllm_speculative.OPTION in given else speculation.refusal
    )
    return told or gpu_spread(spec, context).refusal


def is_unusual(spec: ModelSpec, context: EngineContext) -> bool:
    """Whether more is asked of vLLM than what we derive for every model: worth a look of its own before a start."""
    speculation = vllm_speculative.choose(spec, context.device, context.models_dir)
    longer = (spec.overrides.max_model_len or 0) > (spec.max_model_len or 0)  # than the config says, which vLLM refuses
    return bool(given_arguments(spec, context) or speculation.config or longer or gpu_spread(spec, context).gpus > 1)


def _set_parsers(draft: _Draft, spec: ModelSpec) -> None:
    if spec.task is not Task.CHAT:
        return
    template = read_template(spec.path)
    tekken = (spec.path / TEKKEN).is_file()
    tools = tool_parser(spec.model_type, template, spec.id, tekken=tekken)
    draft.because(tools.reason)
    if tools.parser:
        draft.set("enable-auto-tool-choice", True)
        draft.set("tool-call-parser", tools.parser)
    reasoning = reasoning_parser(spec.id, spec.model_type, template, tekken=tekken)
    draft.because(reasoning.reason)
    if reasoning.parser:
        draft.set("reasoning-parser", reasoning.parser)


def _set_adapters(draft: _Draft, lora: vllm_lora.LoraArguments) -> None:
    draft.because(lora.reason)
    for name, value in lora.values.items():
        draft.set(name, value)


def _set_sleep(draft: _Draft, tiers: vllm_sleep.Tiers) -> None:
    draft.because(tiers.reason)
    if tiers.levels:
        draft.set(vllm_sleep.OPTION, True)


def _set_safety(draft: _Draft, spec: ModelSpec) -> None:
    # By default xgrammar allows any white space between tokens of JSON, in which small models go round for ever.
    draft.set("structured-outputs-config", {"backend": "xgrammar", "disable_any_whitespace": True})
    draft.set("allowed-media-domains", [NO_MEDIA_DOMAIN])
    draft.set("disable-uvicorn-access-log", True)
    if spec.overrides.trust_remote_code:
        draft.set("trust-remote-code", True, "the folder's own code runs: trust_remote_code is configured")


def _set_configured(draft: _Draft, engine_args: Mapping[str, Any], where: str) -> None:
    """The owner's word: replaces what was derived; None takes it away."""
    for key, value in engine_args.items():
        name = argument_name(key)
        if name in OUR_SETTINGS:
            raise BadEngineArgument(f"engine_args: {key!r} is computed; set {OUR_SETTINGS[name]} instead")
        if name in RESERVED:
            raise BadEngineArgument(f"engine_args: {key!r} is set by Roundhouse itself; remove it")
        if value is None:
            draft.values.pop(name, None)
        else:
            draft.values.pop("no-" + name, None)
            draft.set(name, value)
        draft.because(f"{name}: configured {where}")


def _flatten(values: Mapping[str, Any]) -> list[str]:
    args: list[str] = []
    for name, value in values.items():
        match value:
            case True:
                args.append(f"--{name}")
            case False:
                args.append(f"--no-{name}")
            case list() | tuple():
                args += [f"--{name}", *(_text(item) for item in value)]
            case _:
                args += [f"--{name}", _text(value)]
    return args


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)
