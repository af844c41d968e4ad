"""Embedding models, rerankers and classifiers on sentence-transformers: the app's side of the transformers engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engines.base import Engine, EngineContext, EngineStartError, RetrievalFacts, Verdict
from engines.launcher import Launcher
from engines.process import ProcessEngine, engine_files
from engines.progress import transformers_questions
from engines.runtime.backends import candidates, kept
from engines.runtime.protocol import EngineRequest
from engines.runtime.transformers_args import TransformersArgs
from engines.sleeping import DeviceSizes, SleepableEngine
from engines.tensor_shapes import tensors
from engines.transformers_facts import labels_of, longest_input, pooling_of
from engines.transformers_sleep import TransformersSleepRoutes
from models.types import ModelSpec, Task

NAME = "transformers"
RUNTIME_MODULE = "engines.runtime.transformers_runtime"
TASKS = (Task.EMBED, Task.RERANK, Task.CLASSIFY)
BYTES_PER_WEIGHT = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
# What an engine process takes besides its weights: Python objects that a fork copies, the tokenizer, activations of a
# batch; on CUDA mostly the device's context. Replaced by what is measured once a model has been loaded.
OVERHEAD_BYTES = {"cpu": 300 * 1024**2, "cuda": 1024 * 1024**2}


class TransformersFactory:
    """Makes engines that embed, rerank or classify for one model each."""

    name = NAME

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._backends = context.cache_dir / "backends"
        # Remote code, where a user allows it, is copied to this cache before it is imported. Of several arenas glibc's
        # allocator would give back to the system only what is free in the main one, whatever it is told.
        huggingface = str(context.cache_dir / "huggingface")
        env = {"HF_HOME": huggingface, "HF_HUB_OFFLINE": "1", "MALLOC_ARENA_MAX": "1"}
        self._launcher = Launcher(NAME, RUNTIME_MODULE, context, env=env)

    def accepts(self, spec: ModelSpec) -> Verdict:
        if spec.task not in TASKS:
            return Verdict(False, f"the transformers engine embeds, reranks and classifies; this is for {spec.task}")
        try:
            args = self._args(spec)
        except ValidationError as error:
            return Verdict(False, _explain(error))
        if spec.quantization is not None:
            return Verdict(
                False,
                f"its weights are quantized ({spec.quantization}), which this engine cannot compute; get the version "
                "of the model that is not",
            )
        if args.task == "rerank" and args.method is None and _is_causal(spec) and not _has_modules(spec):
            return Verdict(
                False,
                f"{spec.architecture} as a reranker needs a modules.json that says how it scores, or engine_args: "
                "{method: qwen3_reranker} or {method: bge_reranker}",
            )
        if args.task == "classify" and not _classifies(spec):
            return Verdict(False, f"{spec.architecture} has no head that classifies texts")
        return Verdict(True, "sentence-transformers serves it")

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return self._loaded_bytes(spec) + OVERHEAD_BYTES[self._context.device]

    def _loaded_bytes(self, spec: ModelSpec) -> int:
        """Weights in the dtype that they are loaded in, which on the CPU may be twice their size on disk.

        On a GPU half of it, once a precision of 16 bits was chosen at the first load, which itself needs it all.
        """
        args = self._args(spec)
        named = BYTES_PER_WEIGHT.get(spec.dtype or "")
        stored = _stored_bytes_per_weight(spec) or named or 4
        dtype = args.resolved_dtype
        if args.device == "cuda" and dtype == "auto" and (choice := _kept_choice(spec.path, args)):
            dtype = choice.candidate.dtype
        loaded = BYTES_PER_WEIGHT.get(dtype) or named or stored  # "auto": as the configuration says, or else the files
        return int(spec.weights_bytes * loaded / stored)

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        args = self._args(spec)
        if not self.sleep_levels(spec, adapters):
            return (self._loaded_reason(spec, args),)
        return (self._loaded_reason(spec, args), "sleep: level 1 (weights in host memory)")

    def _loaded_reason(self, spec: ModelSpec, args: TransformersArgs) -> str:
        """What computes the model, in which precision: as it was measured, once it has been."""
        if choice := _kept_choice(spec.path, args):
            return f"runs on {choice}"
        loaded = f"loaded as {args.resolved_dtype} on {args.device}"
        if len(_candidates(spec.path, args)) == 1:
            return loaded
        return f"{loaded}, unless its first load finds a faster way (engine_args: backend, dtype)"

    def retrieval_facts(self, spec: ModelSpec) -> RetrievalFacts:
        args = self._args(spec)
        choice = _kept_choice(spec.path, args)
        dtype = choice.candidate.dtype if choice else args.resolved_dtype
        return RetrievalFacts(
            dtype=spec.dtype if dtype == "auto" else dtype,
            pooling=pooling_of(spec, args.method),
            labels=labels_of(spec),
            input_tokens=longest_input(spec, args.max_model_len),
            pass_tokens=args.resolved_batch_tokens,
            pass_inputs=args.batch_items,
            tokenizers=1,
        )

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Engine:
        uds, log_path = engine_files(self._context, NAME, spec.id)
        method = spec.overrides.engine_args.get("method", spec.method)
        questions = transformers_questions(spec.id, spec.task, method)

        def request() -> EngineRequest:
            try:
                args = self._args(spec)
            except ValidationError as error:
                raise EngineStartError(f"{spec.id}: {_explain(error)}") from None
            return EngineRequest(
                name=spec.id,
                uds=str(uds),
                model_path=str(spec.path),
                log_path=str(log_path),
                served_names=(spec.id, *spec.aliases),
                args=args.model_dump(mode="json"),
            )

        def sizes() -> DeviceSizes:
            return DeviceSizes(self._loaded_bytes(spec))

        device, levels = self._context.device, self.sleep_levels(spec, adapters)
        if not levels:
            return ProcessEngine(self._launcher, request, uds, device, questions)
        routes = TransformersSleepRoutes(uds, spec.id, spec.task, method)
        return SleepableEngine(
            self._launcher, request, uds, device, questions, levels=levels, routes=routes, sizes=sizes
        )

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        """Beside a GPU the weights can wait in host memory; on the CPU they are there already."""
        return (1,) if self._context.device == "cuda" and spec.overrides.sleep else ()

    async def start(self) -> None:
        await self._launcher.start()

    def state(self) -> Mapping[str, Any]:
        return self._launcher.state()

    async def close(self) -> None:
        await self._launcher.close()

    def _args(self, spec: ModelSpec) -> TransformersArgs:
        """The engine's defaults, under the model's own overrides, under what only we know. Raises ValidationError."""
        overrides = spec.overrides
        chosen = {"method": spec.method, **self._context.engine_args, **overrides.engine_args}
        chosen |= {
            "task": str(spec.task),
            "device": self._context.device,
            "trust_remote_code": overrides.trust_remote_code,
            "allow_pickle": overrides.allow_pickle,
        }
        chosen |= {"cache_dir": str(self._backends), "fingerprint": spec.fingerprint, "body_path": ""}
        # The folder's own limit too: RoBERTa's 514 positions are 512 for text, which the libraries do not tell.
        limits = [limit for limit in (overrides.max_model_len, spec.max_model_len) if limit is not None]
        if limits:
            chosen["max_model_len"] = min(limits)
        return TransformersArgs.model_validate(chosen)


def create_factory(context: EngineContext) -> TransformersFactory:
    """Entry point `transformers` of the group roundhouse.engines."""
    return TransformersFactory(context)


def _kept_choice(path: Path, args: TransformersArgs) -> kept.Choice | None:
    """What was measured for just this content, these arguments, libraries and this machine; None where nothing was."""
    choice = kept.read(kept.folder_of(Path(args.cache_dir), str(path)))
    return choice if choice is not None and choice.key == _key(path, args) else None


@lru_cache(maxsize=4096)  # what it reads of the folder is of the fingerprint in `args`
def _candidates(path: Path, args: TransformersArgs) -> Sequence[kept.Candidate]:
    return candidates.candidates(path, args)


@lru_cache(maxsize=4096)
def _key(path: Path, args: TransformersArgs) -> str:
    return candidates.key_of(str(path), args, _candidates(path, args))


def _stored_bytes_per_weight(spec: ModelSpec) -> float:
    """Their mean in the files, which may differ from what the configuration names; 0 where no file tells it."""
    found = [t for t in tensors(spec.path, spec.fingerprint).values() if t.dtype in candidates.STORED]
    count = sum(math.prod(t.shape) for t in found)
    sizes = (BYTES_PER_WEIGHT[candidates.STORED[t.dtype]] * math.prod(t.shape) for t in found)
    return sum(sizes) / count if count else 0.0


def _is_causal(spec: ModelSpec) -> bool:
    return spec.architecture.endswith("ForCausalLM")


def _classifies(spec: ModelSpec) -> bool:
    return not spec.architecture or spec.architecture.endswith("ForSequenceClassification")


def _has_modules(spec: ModelSpec) -> bool:
    return (spec.path / "modules.json").is_file()


def _explain(error: ValidationError) -> str:
    return "; ".join(f"engine_args.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
