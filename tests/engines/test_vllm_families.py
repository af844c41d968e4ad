"""Which of vLLM's parsers is chosen for a family."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from engines import vllm_families
from engines.vllm_families import (
    FAMILIES,
    NEEDED_PACKAGES,
    Choice,
    parser_names,
    read_template,
    reasoning_parser,
    tool_parser,
)
from tests.engines.vllm_formats import FORMATS, TOOLS, Format


def chosen(case: Format) -> tuple[Choice, Choice]:
    tools = tool_parser(case.model_type, case.template, case.model_id)
    return tools, reasoning_parser(case.model_id, case.model_type, case.template)


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.model_id)
def test_a_family_s_parsers_are_chosen(case: Format) -> None:
    """That they understand what it writes: test_vllm_engine.py."""
    tools, reasoning = chosen(case)
    assert (tools.parser, reasoning.parser) == (case.tools, case.reasoning)
    assert tools.reason


# (model_type, template, tool parser, reasoning parser)
OTHERS = [
    ("gpt_oss", "<|start|>assistant<|channel|>analysis", "openai", "openai_gptoss"),
    ("qwen3", TOOLS + "<tool_call>{}</tool_call>", "hermes", None),
    ("llama", TOOLS + '{"name": function, "parameters": {}}', "llama3_json", None),
    ("llama", "{{ bos_token }} {{ message }}", None, None),  # Llama 2
    ("phi3", "<|user|>{{ message }}", None, None),
    ("gemma3", "<start_of_turn>", None, None),
    ("kimi_k3", "", "kimi_k3", "kimi_k3"),  # vLLM writes its prompts
    ("afmoe", TOOLS + "<tool_call><function=x> <think>", "qwen3_coder", "deepseek_r1"),
    ("somebody_new", TOOLS + "<weird>", None, None),
    ("somebody_new", "<think>", None, None),
    ("llama", "", None, None),
]


@pytest.mark.parametrize(("model_type", "template", "tools", "reasoning"), OTHERS)
def test_what_no_family_explains_goes_by_the_template_alone(
    model_type: str, template: str, tools: str | None, reasoning: str | None
) -> None:
    assert tool_parser(model_type, template).parser == tools
    assert reasoning_parser("org/model", model_type, template).parser == reasoning


def test_mistrals_own_tokenizer_has_its_format_without_a_template() -> None:
    assert tool_parser("mistral", "", tekken=True).parser == "mistral"
    assert reasoning_parser("mistralai/Ministral-3-8B-Instruct-2512", "mistral3", "", tekken=True).parser is None
    assert reasoning_parser("mistralai/Ministral-3-8B-Reasoning-2512", "mistral3", "", tekken=True).parser == "mistral"


def test_an_instruct_model_of_qwen3_does_not_think_whatever_its_template_says() -> None:
    assert reasoning_parser("Qwen/Qwen3-4B-Instruct-2507", "qwen3", "<think>").parser is None


def test_a_parser_without_its_package_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_families, "find_spec", lambda name: None)
    choice = tool_parser("cohere2", TOOLS + "<|START_ACTION|>")
    assert choice.parser is None
    assert NEEDED_PACKAGES["cohere_command3"] in choice.reason
    monkeypatch.setattr(vllm_families, "find_spec", lambda name: object())
    assert tool_parser("cohere2", TOOLS + "<|START_ACTION|>").parser == "cohere_command3"


def test_every_parser_that_we_name_is_one_of_the_installed_vllm() -> None:
    package = installed("vllm")
    for names, folder in zip(parser_names(), ("tool_parsers", "reasoning"), strict=True):
        registered = (package / folder / "__init__.py").read_text()
        assert {name for name in names if f'"{name}": (' not in registered} == set()


def test_every_family_that_we_name_is_a_model_type_of_vllm_or_transformers() -> None:
    vllm = installed("vllm")
    places = [*(vllm / "transformers_utils").rglob("*.py"), *(vllm / "config").glob("*.py")]
    places += [*(vllm / "model_executor/models").glob("registry.py")]
    places += [*(installed("transformers") / "models/auto").glob("*.py")]
    known = "\n".join(place.read_text(errors="replace") for place in places)
    assert {name for name in FAMILIES if f'"{name}"' not in known} == set()


def installed(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def test_templates_are_read_from_every_place_that_holds_one(tmp_path: Path) -> None:
    assert read_template(tmp_path) == ""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "t", "template": "LIST"}]}))
    assert "LIST" in read_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{broken")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "JSON"}))
    (tmp_path / "chat_template.jinja").write_text("JINJA")
    assert set(read_template(tmp_path).split()) == {"JSON", "JINJA"}
