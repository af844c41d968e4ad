# ruff: noqa: RUF001
"""How families of models write: the telling parts of published chat templates, and what such a model then answers.

Every format calls get_weather(city="Paris"). From the models' chat templates and cards, and vLLM's documentation of
its parsers; vllm_parsing.py feeds them to the installed parsers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TOOLS = "{% if tools %}{{ tools }}{% endif %}"
THINKING = "{{ '<think>' }}"
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
ANSWER = "It is sunny."
THOUGHT = "The user asks for the weather."
QWEN3_XML = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
GLM_XML = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"
DSML = "｜DSML｜"


@dataclass(frozen=True, slots=True)
class Format:
    """`call` is what the model writes to call the tool; `thinks` what it writes before ANSWER, where it thinks."""

    model_id: str
    model_type: str
    template: str
    tools: str | None
    call: str = ""
    reasoning: str | None = None
    thinks: str = f"<think>\n{THOUGHT}\n</think>\n\n"
    special: tuple[str, ...] = ()  # tokens of its vocabulary
    request: dict[str, bool] = field(default_factory=dict)  # chat_template_kwargs with which it thinks


def deepseek(call: str) -> str:
    return f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
V3_CALL = 'function<｜tool▁sep｜>get_weather\n```json\n{"city": "Paris"}\n```'
V31_CALL = 'get_weather<｜tool▁sep｜>{"city": "Paris"}'
THINK = ("<think>", "</think>")
TOOL_CALL = ("<tool_call>", "</tool_call>")
HERMES = f"<tool_call>\n{CALL}\n</tool_call>"
KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>")

FORMATS = [
    Format("Qwen/Qwen2.5-7B-Instruct", "qwen2", TOOLS + HERMES, "hermes", HERMES, special=TOOL_CALL),
    Format("Qwen/Qwen3-8B", "qwen3", TOOLS + HERMES + THINKING, "hermes", HERMES, "qwen3", special=THINK + TOOL_CALL),
    Format("Qwen/Qwen3-Coder-30B", "qwen3_moe", TOOLS + QWEN3_XML, "qwen3_coder", QWEN3_XML, special=TOOL_CALL),
    Format(
        "Qwen/Qwen3.5-9B",
        "qwen3_5",
        TOOLS + QWEN3_XML + THINKING,
        "qwen3_coder",
        QWEN3_XML,
        "qwen3",
        thinks=f"{THOUGHT}\n</think>\n\n",  # the template has written the opening mark
        special=THINK + TOOL_CALL,
    ),
    Format("NousResearch/Hermes-3-Llama-3.1-8B", "llama", TOOLS + HERMES, "hermes", HERMES, special=TOOL_CALL),
    Format(
        "meta-llama/Llama-3.1-8B-Instruct",
        "llama",
        TOOLS + '{"name": function name, "parameters": dictionary} <|python_tag|>',
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        special=("<|python_tag|>",),
    ),
    Format(
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "llama4",
        TOOLS + '<|python_start|>{"name"',
        "llama4_json",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        special=("<|python_start|>", "<|python_end|>", "<|python_tag|>"),
    ),
    Format(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "mistral3",
        TOOLS + "[AVAILABLE_TOOLS][TOOL_CALLS]",
        "mistral",
        f"[TOOL_CALLS][{CALL}]",
        special=("[TOOL_CALLS]",),
    ),
    Format(
        "deepseek-ai/DeepSeek-V3-0324",
        "deepseek_v3",
        "tools" + deepseek(V3_CALL),
        "deepseek_v3",
        deepseek(V3_CALL),
        special=DEEPSEEK,
    ),
    Format(
        "deepseek-ai/DeepSeek-R1-0528",
        "deepseek_v3",
        "tools" + deepseek(V3_CALL) + "</think>",
        "deepseek_v3",
        deepseek(V3_CALL),
        "deepseek_r1",
        special=DEEPSEEK + THINK,
    ),
    Format(
        "deepseek-ai/DeepSeek-V3.1",
        "deepseek_v3",
        "{% if thinking %}" + deepseek(V31_CALL) + THINKING,
        "deepseek_v31",
        deepseek(V31_CALL),
        "deepseek_v3",
        special=DEEPSEEK + THINK,
        request={"thinking": True},
    ),
    Format(
        "deepseek-ai/DeepSeek-V3.2",
        "deepseek_v32",
        "",
        "deepseek_v32",
        f'<{DSML}function_calls>\n<{DSML}invoke name="get_weather">\n'
        f'<{DSML}parameter name="city" string="true">Paris</{DSML}parameter>\n</{DSML}invoke>\n</{DSML}function_calls>',
        "deepseek_v3",
        special=THINK,
        request={"thinking": True},
    ),
    Format("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama", THINKING, None, "", "deepseek_r1", special=THINK),
    Format("zai-org/GLM-4.5", "glm4_moe", TOOLS + GLM_XML + THINKING, "glm45", GLM_XML, "glm45", special=THINK),
    Format("zai-org/GLM-4.7-Flash", "glm4_moe_lite", TOOLS + GLM_XML, "glm47", GLM_XML, special=TOOL_CALL),
    Format(
        "moonshotai/Kimi-K2-Thinking",
        "kimi_k2",
        TOOLS + KIMI[0] + THINKING,
        "kimi_k2",
        f'{KIMI[0]}{KIMI[2]}functions.get_weather:0<|tool_call_argument_begin|>{{"city": "Paris"}}{KIMI[3]}{KIMI[1]}',
        "kimi_k2",
        special=(*KIMI, "<|tool_call_argument_begin|>", *THINK),
    ),
    Format(
        "MiniMaxAI/MiniMax-M2",
        "minimax_m2",
        TOOLS + "<minimax:tool_call>" + THINKING,
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        "minimax_m2",
        thinks=f"{THOUGHT}\n</think>\n\n",
        special=("<minimax:tool_call>", "</minimax:tool_call>", *THINK),
    ),
    Format(
        "ByteDance-Seed/Seed-OSS-36B-Instruct",
        "seed_oss",
        TOOLS + "<seed:tool_call>\n<function=example>" + "<seed:think>",
        "seed_oss",
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
        "seed_oss",
        thinks=f"<seed:think>{THOUGHT}</seed:think>",
        special=("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>", "<seed:bos>", "<seed:eos>"),
    ),
    Format(
        "stepfun-ai/step3",
        "step3_vl",
        TOOLS + "<｜tool_calls_begin｜>",
        "step3",
        '<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">'
        '<steptml:parameter name="city">Paris</steptml:parameter></steptml:invoke>'
        "<｜tool_call_end｜><｜tool_calls_end｜>",
    ),
    Format(
        "tencent/Hunyuan-A13B-Instruct",
        "hunyuan_v1_moe",
        TOOLS + "<tool_calls>",
        "hunyuan_a13b",
        f"<tool_calls>[{CALL}]</tool_calls>",
    ),
    Format(
        "baidu/ERNIE-4.5-21B-A3B-Thinking",
        "ernie4_5_moe",
        TOOLS + HERMES + THINKING,
        "ernie45",
        f"<tool_call>\n{CALL}\n</tool_call>\n",
        "ernie45",
        special=(*THINK, *TOOL_CALL, "<response>", "</response>"),
    ),
    Format(
        "meituan-longcat/LongCat-Flash-Chat",
        "longcat_flash",
        TOOLS + "<longcat_tool_call>",
        "longcat",
        f"<longcat_tool_call>\n{CALL}\n</longcat_tool_call>",
        special=("<longcat_tool_call>", "</longcat_tool_call>"),
    ),
    Format(
        "XiaomiMiMo/MiMo-V2.5",
        "mimo_v2",
        TOOLS + QWEN3_XML + THINKING,
        "mimo",
        "<tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</tool_call>",
        "mimo",
        special=THINK + TOOL_CALL,
    ),
    Format(
        "ai21labs/AI21-Jamba-1.5-Mini",
        "jamba",
        TOOLS + "<tool_calls>",
        "jamba",
        f"<tool_calls>[\n    {CALL}\n]</tool_calls>",
        special=("<tool_calls>", "</tool_calls>"),
    ),
    Format(
        "internlm/internlm2_5-7b-chat",
        "internlm2",
        TOOLS + "<|action_start|><|plugin|>",
        "internlm",
        '<|action_start|><|plugin|>{"name": "get_weather", "parameters": {"city": "Paris"}}<|action_end|>',
        special=("<|action_start|>", "<|plugin|>", "<|action_end|>"),
    ),
    Format(
        "ibm-granite/granite-3.1-8b-instruct",
        "granite",
        TOOLS + "<|tool_call|>",
        "granite",
        f"<|tool_call|>[{CALL}]",
        special=("<|tool_call|>",),
    ),
    Format(
        "ibm-granite/granite-3.2-8b-instruct",
        "granite",
        TOOLS + "<|tool_call|>{% if thinking %}",
        "granite",
        f"<|tool_call|>[{CALL}]",
        "granite",
        thinks=f"Here is my thought process: {THOUGHT} Here is my response: ",
        special=("<|tool_call|>",),
        request={"thinking": True},
    ),
    Format(
        "ibm-granite/granite-4.0-h-small", "granitemoehybrid", TOOLS + HERMES, "granite4", HERMES, special=TOOL_CALL
    ),
    Format(
        "google/gemma-4-31B-it",
        "gemma4",
        TOOLS + "<|tool_call>call:<|channel>thought",
        "gemma4",
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>',
        "gemma4",
        thinks=f"<|channel>thought\n{THOUGHT}<channel|>",
        special=("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
    ),
    Format(
        "google/functiongemma-270m-it",
        "gemma3_text",
        TOOLS + "<start_function_call>",
        "functiongemma",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>",
        special=("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    Format(
        "microsoft/Phi-4-mini-instruct",
        "phi3",
        TOOLS + "<|tool|>",
        "phi4_mini_json",
        f"functools[{CALL}]",
    ),
    Format(
        "allenai/Olmo-3-7B-Instruct",
        "olmo3",
        TOOLS + "<function_calls>",
        "olmo3",
        '<function_calls>\nget_weather(city="Paris")\n</function_calls>',
    ),
    Format(
        "LiquidAI/LFM2.5-1.2B-Thinking",
        "lfm2",
        TOOLS + "<|tool_list_start|>" + THINKING,
        "lfm2",
        '<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>',
        "qwen3",
        special=("<|tool_call_start|>", "<|tool_call_end|>", *THINK),
    ),
    Format(
        "swiss-ai/Apertus-8B-Instruct-2509",
        "apertus",
        TOOLS + "<|tools_prefix|>",
        "apertus",
        '<|tools_prefix|>[{"get_weather": {"city": "Paris"}}]<|tools_suffix|>',
        special=("<|tools_prefix|>", "<|tools_suffix|>"),
    ),
    Format(
        "ai-sage/GigaChat3-10B-A1.8B",
        "deepseek_v3",
        TOOLS + "function call<|role_sep|>\n",
        "gigachat3",
        f"function call<|role_sep|>\n{CALL}",
        special=("<|role_sep|>", "<|message_sep|>"),
    ),
    Format(
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "nemotron_h",
        TOOLS + QWEN3_XML + THINKING,
        "qwen3_coder",
        QWEN3_XML,
        "nemotron_v3",
        special=THINK + TOOL_CALL,
    ),
    Format(
        "Salesforce/Llama-xLAM-2-8b-fc-r",
        "llama",
        TOOLS,
        "xlam",
        f"[{CALL}]",
    ),
    Format(
        "stepfun-ai/Step-3.5-Flash",
        "step3p5",
        TOOLS + QWEN3_XML + THINKING,
        "step3p5",
        QWEN3_XML,
        "step3p5",
        thinks=f"{THOUGHT}\n</think>\n",
        special=THINK + TOOL_CALL,
    ),
    Format(
        "mistralai/Magistral-Small-2509",
        "mistral3",
        TOOLS + "[TOOL_CALLS][THINK]",
        "mistral",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        "mistral",
        thinks=f"[THINK]{THOUGHT}[/THINK]",
        special=("[TOOL_CALLS]", "[THINK]", "[/THINK]", "[ARGS]"),
    ),
    Format(
        "inclusionAI/Ling-3.0-flash",
        "bailing_hybrid",
        TOOLS + GLM_XML + THINKING,
        "ling3",
        GLM_XML,
        "ling3",
        special=THINK + TOOL_CALL,
    ),
    Format(
        "rednote/dots3-note-prev",
        "dots3_note",
        TOOLS + "<dots_function_call>",
        "dots",
        "<dots_function_call>\n<invoke name=get_weather>\n<parameter name=city>Paris</parameter>\n</invoke>\n"
        "</dots_function_call>",
        special=("<dots_function_call>", "</dots_function_call>"),
    ),
]
