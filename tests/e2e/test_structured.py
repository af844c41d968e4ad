"""Structured output and tools, end to end: whatever a model would have said, what comes keeps to what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from bench._servers import Server
from demo import facts

TIMEOUT_S = 120.0
NESTED = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        "sunny": {"type": "boolean"},
    },
    "required": ["city", "days", "sunny"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= "left" | "right" | "left then " root'


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", timeout=TIMEOUT_S, max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, **asked: Any) -> Any:
    messages = [{"role": "user", "content": facts.WHICH_MODEL}]
    given = {"model": facts.QWEN3_CHAT, "messages": messages, "temperature": 0, "max_tokens": 60} | asked
    return client.chat.completions.create(**given)


def text(client: openai.OpenAI, **asked: Any) -> str:
    return str(ask(client, **asked).choices[0].message.content)


@pytest.mark.parametrize("model", [facts.QWEN3_CHAT, facts.LLAMA_CHAT, facts.ADAPTER])
def test_an_answer_is_one_of_the_choices(client: openai.OpenAI, model: str) -> None:
    choices = ["cats", "dogs"]
    assert text(client, model=model, extra_body={"structured_outputs": {"choice": choices}}) in choices


def test_an_answer_matches_a_regular_expression(client: openai.OpenAI) -> None:
    expression = r"[A-Z]{2}-[0-9]{3}"
    assert re.fullmatch(expression, text(client, extra_body={"structured_outputs": {"regex": expression}}))


def test_an_answer_keeps_to_a_grammar(client: openai.OpenAI) -> None:
    answer = text(client, max_tokens=30, extra_body={"structured_outputs": {"grammar": GRAMMAR}})
    assert re.fullmatch(r"(left then )*(left|right)", answer)


def test_a_nested_schema_is_kept_to_when_it_streams_as_well(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": NESTED, "strict": True}}
    chunks = list(ask(client, response_format=form, stream=True))
    found = json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    assert set(found) == {"city", "days", "sunny"}
    assert found["city"] in ("Paris", "Rome")
    assert all(isinstance(day, int) for day in found["days"])


def test_a_completion_is_structured_too(client: openai.OpenAI) -> None:
    structured = {"structured_outputs": {"regex": r" [a-z]{3}!"}}
    answer = client.completions.create(model=facts.BASE, prompt="Mary", max_tokens=20, extra_body=structured)
    assert re.fullmatch(r" [a-z]{3}!", answer.choices[0].text)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": facts.TOOL_NAME}}], ids=["required", "named"]
)
def test_a_tool_that_must_be_called_is_called_whatever_was_asked(client: openai.OpenAI, choice: Any) -> None:
    answer = ask(client, tools=[facts.TOOL], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == facts.TOOL_NAME
    assert set(json.loads(call.function.arguments)) <= {*facts.TOOL_ARGUMENTS}


@pytest.mark.parametrize("model", facts.CHAT_MODELS, ids=lambda model: model.id)
def test_a_tool_call_streams_and_its_result_is_answered(client: openai.OpenAI, model: facts.ChatModel) -> None:
    question = [{"role": "user", "content": facts.TOOL_QUESTION}]
    chunks = list(ask(client, model=model.id, messages=question, tools=[facts.TOOL], stream=True))
    deltas = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
    arguments = "".join(delta.function.arguments or "" for delta in deltas)
    assert [delta.function.name for delta in deltas if delta.function.name] == [facts.TOOL_NAME]
    assert json.loads(arguments) == facts.TOOL_ARGUMENTS
    function = {"name": facts.TOOL_NAME, "arguments": arguments}
    called = {"role": "assistant", "tool_calls": [{"id": deltas[0].id, "type": "function", "function": function}]}
    result = {"role": "tool", "tool_call_id": deltas[0].id, "content": facts.TOOL_RESULT}
    answer = ask(client, model=model.id, messages=[*question, called, result], tools=[facts.TOOL])
    assert answer.choices[0].message.content == facts.TOOL_ANSWER


@pytest.mark.parametrize(
    "structured",
    [{"grammar": "root ::= nowhere"}, {"regex": "(["}, {"json": {"type": "nothing"}}, {"choice": []}],
    ids=["grammar", "regex", "schema", "choice"],
)
def test_what_cannot_be_kept_to_is_a_client_error_and_the_model_goes_on(
    client: openai.OpenAI, structured: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(client, extra_body={"structured_outputs": structured})
    assert text(client) == facts.QWEN3.answers[facts.WHICH_MODEL]
