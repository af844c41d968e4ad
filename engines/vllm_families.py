"""Which of vLLM's parsers understands what a model writes: by its chat template where that shows it, else its family.

The template is the better witness: it shows the model how its own earlier tool calls looked, whatever its
architecture is called (Hermes on Llama's, DeepSeek-R1 distilled into Qwen's). The names are those of vLLM 0.32
(tool_parsers/__init__.py, reasoning/__init__.py). Tests compare them with the installed ones, and feed each installed
parser with what its family writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MAX_TEMPLATE_BYTES = 4 << 20  # of a file that may hold one; tokenizer_config.json with many added tokens is 1 MB
TEKKEN = "tekken.json"  # Mistral's own tokenizer, whose chat format is in mistral-common and not in a template

DOCS = "docs.vllm.ai, tool calling"
REASONING_DOCS = "docs.vllm.ai, reasoning outputs"
RECIPES = "recipes.vllm.ai"


@dataclass(frozen=True, slots=True)
class Choice:
    """A parser's name, or None, and why."""

    parser: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Family:
    """The parsers of a family whose format is its own; `source` is who recommends them for which model."""

    tools: str | None
    reasoning: str | None
    source: str


_V4 = Family("deepseek_v4", "deepseek_v4", f"{RECIPES}: DeepSeek-V4-Flash")
_GLM = Family("glm47", "glm45", f"{RECIPES}: GLM-4.7, GLM-5")
_HUNYUAN = Family("hunyuan_a13b", "hunyuan_a13b", f"{DOCS}: Hunyuan-A13B-Instruct")
_KIMI = Family("kimi_k2", "kimi_k2", f"{RECIPES}: Kimi-K2-Thinking, Kimi-K2.5")
_M3 = Family("minimax_m3", "minimax_m3", f"{RECIPES}: MiniMax-M3")
_MIMO = Family("mimo", "mimo", f"{RECIPES}: MiMo-V2.5")
_STEP = Family("step3p5", "step3p5", f"{RECIPES}: Step-3.5-Flash")
_INKLING = Family("inkling", "inkling", f"{RECIPES}: Inkling")
_GEMMA4 = Family("gemma4", "gemma4", f"{RECIPES}: gemma-4-31B-it")
_LING = Family("ling3", "ling3", f"{RECIPES}: Ling-3.0-flash")

# By model_type; tools only for a model whose template takes them.
FAMILIES = {
    "apertus": Family("apertus", None, f"{DOCS}: Apertus-8B-Instruct-2509"),
    "bailing_hybrid": _LING,
    "deepseek_v32": Family("deepseek_v32", "deepseek_v3", f"{RECIPES}: DeepSeek-V3.2"),
    "deepseek_v4": _V4,
    "dots3_note": Family("dots", "qwen3", f"{RECIPES}: dots3-note-prev"),
    "ernie4_5_moe": Family("ernie45", "ernie45", f"{REASONING_DOCS}: ERNIE-4.5-21B-A3B-Thinking"),
    "gemma4": _GEMMA4,
    "gemma4_unified": _GEMMA4,
    "glm4_moe": Family("glm45", "glm45", f"{RECIPES}: GLM-4.5"),
    "glm4_moe_lite": _GLM,
    "glm4v_moe": Family("glm45", "glm45", f"{RECIPES}: GLM-4.5V"),
    "glm_moe_dsa": _GLM,
    "gpt_oss": Family("openai", "openai_gptoss", f"{DOCS}: gpt-oss-20b"),
    "granite": Family("granite", "granite", f"{DOCS}: granite-3.1-8b-instruct"),
    "granitemoe": Family("granite", "granite", f"{DOCS}: granite-3.1-8b-instruct"),
    "granitemoehybrid": Family("granite4", None, f"{DOCS}: granite-4.0-h-small"),
    "hunyuan_v1_dense": _HUNYUAN,
    "hunyuan_v1_moe": _HUNYUAN,
    "hy_v3": Family("hy_v3", "hy_v3", f"{RECIPES}: Hy3"),
    "inkling_mm_model": _INKLING,
    "inkling_model": _INKLING,
    "internlm2": Family("internlm", None, f"{DOCS}: internlm2_5-7b-chat"),
    "interns1": Family("internlm", "deepseek_r1", f"{RECIPES}: Intern-S1"),
    "jamba": Family("jamba", None, f"{DOCS}: AI21-Jamba-1.5-Mini"),
    "kimi_k2": _KIMI,
    "kimi_k25": _KIMI,
    "kimi_k3": Family("kimi_k3", "kimi_k3", f"{RECIPES}: Kimi-K3"),
    "laguna": Family("poolside_v1", "poolside_v1", f"{RECIPES}: Laguna-M.1"),
    "lfm2": Family("lfm2", "qwen3", f"{RECIPES}: LFM2.5-1.2B-Thinking"),
    "lfm2_moe": Family("lfm2", "qwen3", f"{RECIPES}: LFM2.5-8B-A1B"),
    "llama4": Family("llama4_json", None, f"{DOCS}: Llama-4, whose published template has tool calls in JSON"),
    "longcat_flash": Family("longcat", None, f"{DOCS}: LongCat-Flash-Chat"),
    "mimo_v2": _MIMO,
    "mimo_v2_flash": _MIMO,
    "minimax_m2": Family("minimax_m2", "minimax_m2", f"{RECIPES}: MiniMax-M2"),
    "minimax_m3_vl": _M3,
    "muse_glimmer": Family("muse_glimmer", "muse_glimmer", f"{RECIPES}: Muse-Glimmer-30B"),
    "olmo3": Family("olmo3", "olmo3", f"{DOCS}: Olmo-3-7B-Instruct, Olmo-3-32B-Think"),
    "plamo3": Family("plamo3", "plamo3", "vLLM's parser of that name"),
    "seed_oss": Family("seed_oss", "seed_oss", f"{RECIPES}: Seed-OSS-36B-Instruct"),
    "step3_vl": Family("step3", "step3", "vLLM's parser of that name"),
    "step3p5": _STEP,
    "step3p7": _STEP,
}

# Otherwise what the template itself contains; the first that matches wins.
MARKERS = (
    ("<seed:tool_call>", "seed_oss"),
    ("<function=", "qwen3_coder"),  # Qwen3-Coder, Qwen3.5, Nemotron 3, Trinity
    ("<tool_call>", "hermes"),  # Hermes, Qwen2.5, Qwen3
    ("[TOOL_CALLS]", "mistral"),
    ("<start_function_call>", "functiongemma"),
    ("<|START_ACTION|>", "cohere_command3"),
    ("<|tool_list_start|>", "lfm2"),
    ("<function_calls>", "olmo3"),
    ("function call<|role_sep|>", "gigachat3"),
    ("<|function_call|>", "gigachat3"),
    ("<|tool_call|>", "phi4_mini_json"),
    ("<|python_tag|>", "llama3_json"),
)
_DEEPSEEK_TOOLS = "<｜tool▁calls▁begin｜>"  # noqa: RUF001  # DeepSeek's own characters

# The last resort: a template that takes tools and shows no marker of its own.
_TOOLS_BY_LINEAGE = {"llama": "llama3_json", "mllama": "llama3_json", "mistral": "mistral", "phi3": "phi4_mini_json"}
# Trained to call tools in a format that their template does not show.
_TOOLS_BY_NAME = (("xlam", "xlam"),)

# Families that share their tool calls with others, but say how they think (the docs on reasoning outputs, recipes).
_REASONING_BY_FAMILY = {
    "afmoe": "deepseek_r1",  # Trinity
    "mellum": "qwen3",
    "nemotron_h": "nemotron_v3",
    **dict.fromkeys(
        ("qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), "qwen3"
    ),
}
_ALWAYS_REASONS = frozenset({"gpt_oss"})
# vLLM writes the prompts of these itself: their repositories have no chat template.
_OWN_ENCODING = frozenset({"deepseek_v32", "deepseek_v4", "kimi_k3", "inkling_mm_model", "inkling_model"})
# Architectures of others into which DeepSeek-R1 was distilled, QwQ, and Phi-4-reasoning: they write as R1 does.
_DISTILLED = frozenset({"qwen2", "llama", "phi3"})
_THINK_MARKERS = ("<think>", "</think>", "<seed:think>", "<|channel>", "<mm:think>")
# Parsers that work only with a package that vLLM does not bring.
NEEDED_PACKAGES = {"cohere_command3": "cohere_melody"}


def tool_parser(model_type: str, template: str, model_id: str = "", *, tekken: bool = False) -> Choice:
    """The tool-call parser for a model, or none where its template takes no tools or its format is unknown.

    `tekken`: it has Mistral's own tokenizer.
    """
    choice = _tool_parser(model_type, template, model_id, tekken)
    package = NEEDED_PACKAGES.get(choice.parser or "")
    if package and find_spec(package) is None:
        return Choice(None, f"no tool parser: {choice.parser} needs the package {package}, which is not installed")
    return choice


def _tool_parser(model_type: str, template: str, model_id: str, tekken: bool) -> Choice:
    family = FAMILIES.get(model_type)
    if family and family.tools and ("tool" in template or model_type in _OWN_ENCODING | _ALWAYS_REASONS):
        return Choice(family.tools, f"tool parser {family.tools}: of {model_type} ({family.source})")
    if not template:
        if tekken:
            return Choice("mistral", f"tool parser mistral: {TEKKEN} has Mistral's own format ({DOCS})")
        return Choice(None, "no tool parser: the model has no chat template")
    if "tool" in template:
        for part, parser in _TOOLS_BY_NAME:
            if part in model_id.lower():
                return Choice(parser, f"tool parser {parser}: by its name ({DOCS})")
    if _DEEPSEEK_TOOLS in template:
        parser = "deepseek_v3" if "```json" in template else "deepseek_v31"
        return Choice(parser, f"tool parser {parser}: the template has DeepSeek's tool calls")
    for marker, parser in MARKERS:
        if marker in template:
            return Choice(parser, f"tool parser {parser}: the template contains {marker}")
    if "tools" in template and model_type in _TOOLS_BY_LINEAGE:
        parser = _TOOLS_BY_LINEAGE[model_type]
        return Choice(parser, f"tool parser {parser}: the template takes tools, and the model is a {model_type}")
    if "tools" in template:
        return Choice(None, f"no tool parser: the format of {model_type or 'this model'}'s tool calls is not known")
    return Choice(None, "no tool parser: the chat template takes no tools")


def reasoning_parser(model_id: str, model_type: str, template: str, *, tekken: bool = False) -> Choice:
    """The reasoning parser, only for a model that is seen to think.

    Given to a model that does not, most of them would hand its whole answer to the client as reasoning.
    """
    family = FAMILIES.get(model_type)
    if family and model_type in _ALWAYS_REASONS:
        return Choice(family.reasoning, f"reasoning parser {family.reasoning}: {model_type} always reasons")
    if family and family.reasoning and model_type in _OWN_ENCODING:
        return Choice(family.reasoning, f"reasoning parser {family.reasoning}: of {model_type} ({family.source})")
    if "[THINK]" in template:
        return Choice("mistral", "reasoning parser mistral: the template contains [THINK]")
    name = model_id.lower()
    if tekken and not template and ("reasoning" in name or "magistral" in name):
        return Choice("mistral", "reasoning parser mistral: by its name, and Mistral's own format")
    return _for_thinking(name, model_type, template, family)


def _for_thinking(name: str, model_type: str, template: str, family: Family | None) -> Choice:
    if model_type.startswith("granite") and family and family.reasoning and "thinking" in template:
        return Choice(family.reasoning, f"reasoning parser {family.reasoning}: the template can ask for thinking")
    marker = next((mark for mark in _THINK_MARKERS if mark in template), None)
    if marker is None:
        return Choice(None, "no reasoning parser: the chat template has no marks of thinking")
    if model_type.startswith("qwen3") and "instruct" in name:
        return Choice(None, "no reasoning parser: Qwen3's Instruct models do not think")
    if model_type == "deepseek_v3":
        # V3.1 thinks when it is asked to, which its parser looks for in the request; R1 always does.
        parser = "deepseek_r1" if "r1" in name and "thinking" not in template else "deepseek_v3"
        return Choice(parser, f"reasoning parser {parser}: DeepSeek's template contains {marker} ({REASONING_DOCS})")
    by_family = (family.reasoning if family else None) or _REASONING_BY_FAMILY.get(model_type)
    found = by_family or ("deepseek_r1" if model_type in _DISTILLED else None)
    if found is None:
        return Choice(None, f"no reasoning parser: how {model_type or 'this model'} marks its thinking is not known")
    return Choice(found, f"reasoning parser {found}: a {model_type} whose template contains {marker}")


def parser_names() -> tuple[set[str], set[str]]:
    """Every tool parser and every reasoning parser that may be chosen."""
    tools = {family.tools for family in FAMILIES.values()} | {parser for _, parser in (*MARKERS, *_TOOLS_BY_NAME)}
    tools |= {*_TOOLS_BY_LINEAGE.values(), "deepseek_v3", "deepseek_v31"}
    reasoning = {family.reasoning for family in FAMILIES.values()} | {*_REASONING_BY_FAMILY.values()}
    reasoning |= {"deepseek_r1", "deepseek_v3", "mistral"}
    return {name for name in tools if name}, {name for name in reasoning if name}


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
