"""Which of vLLM's parsers understands what a model writes: by its chat template where that shows it, else its family.

The template is the better witness: it shows the model how its own earlier tool calls looked, whatever its
architecture is called (Hermes on Llama's, DeepSeek-R1 distilled into Qwen's). The names are those of vLLM 0.32
(tool_parsers/__init__.py, reasoning/__init__.py); a test compares them with the installed ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_TEMPLATE_BYTES = (
    4 * 1024 * 1024
)  # of a file that may hold one; tokenizer_config.json with many added tokens is 1 MB


@dataclass(frozen=True, slots=True)
class Choice:
    """A parser's name, or None, and why."""

    parser: str | None
    reason: str


# Families whose format is their own: model_type → tool parser, provided that their template takes tools.
_TOOLS_BY_FAMILY = {
    "gpt_oss": "openai",
    "deepseek_v32": "deepseek_v32",
    "deepseek_v4": "deepseek_v4",
    "glm4_moe": "glm45",
    "glm4_moe_lite": "glm47",
    "kimi_k2": "kimi_k2",
    "minimax_m2": "minimax_m2",
    "seed_oss": "seed_oss",
    "step3": "step3",
    "step3p5": "step3p5",
    "hunyuan_v1_moe": "hunyuan_a13b",
    "ernie4_5_moe": "ernie45",
    "longcat_flash": "longcat",
    "mimo_v2_flash": "mimo",
    "jamba": "jamba",
    "internlm2": "internlm",
    "granitemoehybrid": "granite4",
    "granite": "granite",
    "gemma4": "gemma4",
    "apertus": "apertus",
    "llama4": "llama4_json",
    "dots1": "dots",
}

# Otherwise what the template itself contains; the first that matches wins.
_TOOLS_BY_MARKER = (
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<start_function_call>", "functiongemma"),
    ("<|START_ACTION|>", "cohere_command3"),
    ("<|tool_list_start|>", "lfm2"),
    ("<function_calls>", "olmo3"),
    ("<|tool_call|>", "phi4_mini_json"),
    ("<|python_tag|>", "llama3_json"),
)
_DEEPSEEK_TOOLS = "<｜tool▁calls▁begin｜>"  # noqa: RUF001  # DeepSeek's own characters

# The last resort: a template that takes tools and shows no marker of its own.
_TOOLS_BY_LINEAGE = {"llama": "llama3_json", "mllama": "llama3_json", "mistral": "mistral", "phi3": "phi4_mini_json"}

_REASONING_BY_FAMILY = {
    "gpt_oss": "openai_gptoss",
    "deepseek_v32": "deepseek_v3",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v4": "deepseek_v4",
    "glm4_moe": "glm45",
    "glm4_moe_lite": "glm47",
    "kimi_k2": "kimi_k2",
    "minimax_m2": "minimax_m2",
    "seed_oss": "seed_oss",
    "step3": "step3",
    "step3p5": "step3p5",
    "hunyuan_v1_moe": "hunyuan_a13b",
    "ernie4_5_moe": "ernie45",
    "mimo_v2_flash": "mimo",
    "nemotron_h": "nemotron_v3",
    "olmo3": "olmo3",
    "gemma4": "gemma4",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3",
    "qwen3_next": "qwen3",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3",
    "qwen3_5": "qwen3",
    "qwen3_5_moe": "qwen3",
}
_ALWAYS_REASONS = frozenset({"gpt_oss"})
# Architectures of others into which DeepSeek-R1 was distilled, and QwQ: they write as R1 does.
_DISTILLED = frozenset({"qwen2", "llama"})
_THINK_MARKERS = ("<think>", "</think>", "<seed:think>", "<|channel>")


def tool_parser(model_type: str, template: str) -> Choice:
    """The tool-call parser for a model, or none where its template takes no tools or its format is unknown."""
    if not template:
        return Choice(None, "no tool parser: the model has no chat template")
    if model_type in _TOOLS_BY_FAMILY and ("tool" in template or model_type == "gpt_oss"):
        return Choice(_TOOLS_BY_FAMILY[model_type], f"tool parser {_TOOLS_BY_FAMILY[model_type]}: of {model_type}")
    if _DEEPSEEK_TOOLS in template:
        parser = "deepseek_v3" if "```json" in template else "deepseek_v31"
        return Choice(parser, f"tool parser {parser}: the template has DeepSeek's tool calls")
    for marker, parser in _TOOLS_BY_MARKER:
        if marker in template:
            return Choice(parser, f"tool parser {parser}: the template contains {marker}")
    if "tools" in template and model_type in _TOOLS_BY_LINEAGE:
        parser = _TOOLS_BY_LINEAGE[model_type]
        return Choice(parser, f"tool parser {parser}: the template takes tools, and the model is a {model_type}")
    if "tools" in template:
        return Choice(None, f"no tool parser: the format of {model_type or 'this model'}'s tool calls is not known")
    return Choice(None, "no tool parser: the chat template takes no tools")


def reasoning_parser(model_id: str, model_type: str, template: str) -> Choice:
    """The reasoning parser, only for a model that is seen to think.

    Given to a model that does not, most of them would hand its whole answer to the client as reasoning.
    """
    if model_type in _ALWAYS_REASONS:
        return Choice(_REASONING_BY_FAMILY[model_type], f"reasoning parser: {model_type} always reasons")
    if "[THINK]" in template:
        return Choice("mistral", "reasoning parser mistral: the template contains [THINK]")
    marker = next((mark for mark in _THINK_MARKERS if mark in template), None)
    if marker is None:
        return Choice(None, "no reasoning parser: the chat template has no marks of thinking")
    if model_type.startswith("qwen3") and "instruct" in model_id.lower():
        return Choice(None, "no reasoning parser: Qwen3's Instruct models do not think")
    parser = _REASONING_BY_FAMILY.get(model_type) or ("deepseek_r1" if model_type in _DISTILLED else None)
    if parser is None:
        return Choice(None, f"no reasoning parser: how {model_type or 'this model'} marks its thinking is not known")
    return Choice(parser, f"reasoning parser {parser}: a {model_type} whose template contains {marker}")


def read_template(path: Path) -> str:
    """Every chat template of the model folder as one text, empty where there is none or it cannot be read."""
    jinja = _read(path / "chat_template.jinja")
    others = (_template_in(_read(path / name)) for name in ("chat_template.json", "tokenizer_config.json"))
    return "\n".join(text for text in (jinja, *others) if text)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_TEMPLATE_BYTES)
    except OSError:
        return ""


def _template_in(text: str) -> str:
    """The `chat_template` of a JSON file: a string, or a list of `{"name", "template"}`."""
    try:
        document: Any = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return ""
    template = document.get("chat_template") if isinstance(document, dict) else None
    if isinstance(template, list):
        return "\n".join(str(item.get("template", "")) for item in template if isinstance(item, dict))
    return template if isinstance(template, str) else ""
