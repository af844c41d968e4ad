"""vLLM's runtime, that can also have the installed parsers read what families write: vLLM takes seconds to import.

An engine request of the name `PARSE` writes to the file in its arguments: a list, as JSON, of {"model_id",
"calls": [[name, arguments]], "reasoning", "content", "error"}, one for each format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engines.runtime import vllm_runtime
from engines.runtime.protocol import EngineRequest
from engines.runtime.vllm_runtime import cuda_initialized, preload
from tests.engines.vllm_formats import ANSWER, FORMATS, Format

__all__ = ["PARSE", "cuda_initialized", "preload", "run_engine"]

PARSE = "parsing"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def run_engine(request: EngineRequest) -> None:
    if request.name == PARSE:
        [written] = request.args
        Path(written).write_text(json.dumps([parse(case) for case in FORMATS]))
    else:
        vllm_runtime.run_engine(request)


def tokenizer(special: tuple[str, ...]) -> Any:
    """One that knows every byte, and a format's own tokens."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def parse(case: Format) -> dict[str, Any]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    found: dict[str, Any] = {"model_id": case.model_id, "calls": [], "reasoning": None, "content": None, "error": ""}
    asked = {"model": "m", "messages": [{"role": "user", "content": "?"}], "tools": [WEATHER]}
    request: Any = ChatCompletionRequest.model_validate(asked | {"chat_template_kwargs": case.request or None})
    tokens = tokenizer(case.special)
    try:
        if case.tools:
            parser: Any = ToolParserManager.get_tool_parser(case.tools)(tokens, request.tools)
            called = parser.extract_tool_calls(case.call, request)
            found["calls"] = [[call.function.name, json.loads(call.function.arguments)] for call in called.tool_calls]
        if case.reasoning:
            thinker: Any = ReasoningParserManager.get_reasoning_parser(case.reasoning)(
                tokens, chat_template_kwargs=case.request
            )
            found["reasoning"], found["content"] = thinker.extract_reasoning(case.thinks + ANSWER, request)
    except Exception as error:  # told by the test that reads this
        found["error"] = f"{type(error).__name__}: {error}"
    return found
