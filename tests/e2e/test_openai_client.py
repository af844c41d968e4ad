"""The `openai` package against the demo models: nothing changed but the base URL."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from bench._servers import Server
from demo import facts

MINUTE_S = 60.0


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", timeout=2 * MINUTE_S, max_retries=0) as made:
        yield made


def asked(question: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": question}]


@pytest.mark.parametrize("model", facts.CHAT_MODELS, ids=lambda model: model.id)
def test_the_model_that_a_request_names_is_the_one_that_answers(client: openai.OpenAI, model: facts.ChatModel) -> None:
    answer = client.chat.completions.create(model=model.id, messages=asked(facts.WHICH_MODEL), temperature=0)
    assert answer.choices[0].message.content == model.answers[facts.WHICH_MODEL]
    assert answer.model == model.id
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize("name", ["qwen3-chat", "DEMO/QWEN3-CHAT", "Qwen3-Chat"])
def test_a_model_answers_to_the_last_part_of_its_id_in_any_case(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=asked("Name a fruit."), temperature=0)
    assert answer.choices[0].message.content == facts.QWEN3.answers["Name a fruit."]


@pytest.mark.parametrize("model", facts.CHAT_MODELS, ids=lambda model: model.id)
def test_a_streamed_answer_is_the_same_text_in_pieces(client: openai.OpenAI, model: facts.ChatModel) -> None:
    stream = client.chat.completions.create(
        model=model.id,
        messages=asked(facts.LONG_QUESTION),
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == facts.LONG_ANSWER
    assert len(pieces) > 10
    assert chunks[-1].usage


@pytest.mark.parametrize("model", facts.CHAT_MODELS, ids=lambda model: model.id)
def test_a_tool_is_called_when_it_is_given(client: openai.OpenAI, model: facts.ChatModel) -> None:
    messages = asked(facts.TOOL_QUESTION)
    tools = [facts.TOOL]
    answer = client.chat.completions.create(model=model.id, messages=messages, tools=tools, temperature=0)  # type: ignore[call-overload]
    calls = answer.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == [facts.TOOL_NAME]
    assert json.loads(calls[0].function.arguments) == facts.TOOL_ARGUMENTS
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", facts.CHAT_MODELS, ids=lambda model: model.id)
def test_an_answer_keeps_to_a_json_schema(client: openai.OpenAI, model: facts.ChatModel) -> None:
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": facts.JSON_SCHEMA, "strict": True},
    }
    answer = client.chat.completions.create(
        model=model.id,
        messages=asked(facts.JSON_QUESTION),
        response_format=response_format,  # type: ignore[call-overload]
        temperature=0,
        max_tokens=100,
    )
    person = json.loads(answer.choices[0].message.content)
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)
    assert set(person) == {"name", "age"}


@pytest.mark.parametrize("prompt", list(facts.BASE_CONTINUATIONS)[:2])
def test_a_base_model_continues_a_text(client: openai.OpenAI, prompt: str) -> None:
    answer = client.completions.create(model=facts.BASE, prompt=prompt, temperature=0, max_tokens=100)
    assert answer.choices[0].text == facts.BASE_CONTINUATIONS[prompt]


def test_a_base_model_is_not_for_chat_and_the_error_says_where_it_is_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/completions") as caught:
        client.chat.completions.create(model=facts.BASE, messages=asked("Hello!"))
    assert caught.value.code == "wrong_model_task"


def test_an_adapter_changes_the_answer_of_its_base_and_no_other(client: openai.OpenAI) -> None:
    answers = {
        name: client.chat.completions.create(model=name, messages=asked(facts.ADAPTER_QUESTION), temperature=0)
        for name in (facts.ADAPTER, facts.QWEN3_CHAT)
    }
    assert answers[facts.ADAPTER].choices[0].message.content == facts.ADAPTER_ANSWER
    assert answers[facts.QWEN3_CHAT].choices[0].message.content == facts.QWEN3.answers[facts.WHICH_MODEL]


def test_the_responses_route_answers(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=facts.LLAMA_CHAT, input="Name a fruit.", temperature=0)
    assert answer.output_text == facts.LLAMA.answers["Name a fruit."]


def test_float_and_base64_embeddings_are_the_same_vectors(client: openai.OpenAI) -> None:
    texts = ["a roundhouse", "a turntable"]
    # The package asks for base64 unless told otherwise, and decodes it.
    packed = client.embeddings.create(model=facts.EMBEDDER, input=texts)
    plain = client.embeddings.create(model=facts.EMBEDDER, input=texts, encoding_format="float")
    assert np.array_equal(
        np.array([item.embedding for item in packed.data], dtype=np.float32),
        np.array([item.embedding for item in plain.data], dtype=np.float32),
    )
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens > 0


def test_the_models_are_listed_and_each_can_be_looked_up(client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert listed == set(facts.ALL_MODELS)
    assert client.models.retrieve(facts.QWEN3_CHAT).id == facts.QWEN3_CHAT


def test_an_unknown_model_is_told_the_nearest(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=facts.QWEN3_CHAT) as caught:
        client.chat.completions.create(model="qwen3-chatt", messages=asked("Hello!"))
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_an_error_of_the_engine_reaches_the_client_as_it_is(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=facts.QWEN3_CHAT, messages=asked("Hello!"), temperature=-1)
