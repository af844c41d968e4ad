"""Chat templates of the demo models, in the manner of their families but short: their readers are very small.

A tool is listed as `name(parameter, ...)` instead of its whole JSON schema, so that the models recognize it however a
client words the description. What a model answers follows its family's format exactly, for vLLM's parsers read it.
"""

from __future__ import annotations

_MACROS = """\
{%- macro listed(tools) -%}
{%- for tool in tools -%}
{%- set function = tool.function if tool.function is defined else tool -%}
{{ function.name }}({{ ((function.parameters or {}).properties or {}) | join(', ') }}){{ '' if loop.last else ' ' }}
{%- endfor -%}
{%- endmacro -%}
{%- macro arguments_json(call) -%}
{{ call.arguments if call.arguments is string else call.arguments | tojson }}
{%- endmacro -%}
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}{%- for part in content -%}{{ part.text if part.text is defined else '' }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set has_system = messages and messages[0].role in ('system', 'developer') -%}
{%- set turns = messages[1:] if has_system else messages -%}
"""

CHATML = (
    _MACROS
    + """\
{%- if has_system or tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if has_system -%}{{ text(messages[0].content) }}{{ '\\n' if tools else '' }}{%- endif -%}
{%- if tools -%}{{ 'Tools: ' + listed(tools) }}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in turns -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response><|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + text(message.content) -}}
{%- for tool_call in message.tool_calls or [] -%}
{%- set call = tool_call.function if tool_call.function is defined else tool_call -%}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + arguments_json(call) + '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
)
"""Qwen3's: ChatML, with tool calls in the manner of Hermes."""

LLAMA3 = (
    _MACROS
    + """\
{%- macro header(role) -%}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{%- endmacro -%}
{{- bos_token -}}
{%- if has_system or tools -%}
{{- header('system') -}}
{%- if has_system -%}{{ text(messages[0].content) }}{{ '\\n' if tools else '' }}{%- endif -%}
{%- if tools -%}{{ 'Tools: ' + listed(tools) }}{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endif -%}
{%- for message in turns -%}
{{- header('ipython' if message.role == 'tool' else message.role) + text(message.content) -}}
{%- for tool_call in message.tool_calls or [] -%}
{%- set call = tool_call.function if tool_call.function is defined else tool_call -%}
{{- '{"name": "' + call.name + '", "parameters": ' + arguments_json(call) + '}' -}}
{%- endfor -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ header('assistant') }}{%- endif -%}
"""
)
"""Llama 3's, with tool calls as bare JSON of a name and parameters."""
