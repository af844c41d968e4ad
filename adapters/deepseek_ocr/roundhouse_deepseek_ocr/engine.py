"""DeepSeek-OCR on vLLM: Roundhouse's own vLLM engine, with the arguments that this model needs.

vLLM has the model, its image processor and its logits processor built in; none of the code in the model's folder runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from typing import ClassVar

from engines.base import EngineContext, EngineFactory, Verdict
from engines.vllm_engine import VllmFactory
from models.types import ModelSpec

ARCHITECTURE = "DeepseekOCRForCausalLM"

# https://docs.vllm.ai/projects/recipes/en/latest/DeepSeek/DeepSeek-OCR.html. Pages are not asked about twice, so that
# remembering them would only cost; and the model repeats itself without the logits processor.
ENGINE_ARGS = {
    "logits-processors": "vllm.model_executor.models.deepseek_ocr:NGramPerReqLogitsProcessor",
    "enable-prefix-caching": False,
    "mm-processor-cache-gb": 0,
    "middleware": "roundhouse_deepseek_ocr.request_defaults.RequestDefaults",
    "chat-template": str(files("roundhouse_deepseek_ocr") / "chat_template.jinja"),
}
WHY = "DeepSeek-OCR: arguments, prompt and defaults of requests as its authors and vLLM recommend"


def create_factory(context: EngineContext) -> EngineFactory:
    """The entry point `roundhouse.engines`: deepseek_ocr."""
    return DeepseekOcrFactory(context)


class DeepseekOcrFactory(VllmFactory):
    """See engines.base.EngineFactory. The configuration's own arguments go before those of this package."""

    name = "deepseek_ocr"
    # vLLM's second model runner, its default on a GPU, refuses logits processors written for the first, as this one is.
    environment: ClassVar[Mapping[str, str | None]] = {"VLLM_USE_V2_MODEL_RUNNER": "0"}

    def __init__(self, context: EngineContext) -> None:
        super().__init__(replace(context, engine_args={**ENGINE_ARGS, **context.engine_args}))

    def accepts(self, spec: ModelSpec) -> Verdict:
        if spec.architecture != ARCHITECTURE:
            return Verdict(False, f"the engine {self.name} serves {ARCHITECTURE} alone, and no adapters for it")
        if find_spec("torchvision") is None:
            return Verdict(
                False,
                "vLLM prepares images for DeepSeek-OCR with torchvision, which is not installed: install the build of "
                "it that fits the installed torch",
            )
        return super().accepts(spec)

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        return (WHY, *super().reasons(spec, adapters))

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        """Not level 2: a canary of text would not show what became of the weights for images."""
        return super().sleep_levels(spec, adapters)[:1]
