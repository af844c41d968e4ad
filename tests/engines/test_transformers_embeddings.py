"""Embeddings over HTTP from a real engine, against what sentence-transformers computes in this process."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from engines.base import Engine
from engines.transformers_engine import TransformersFactory
from tests.engines.transformers_support import Client, client_of, running_engine, spec_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXTS = [
    "The turntable brings the asked-for locomotive onto the track.",
    "short",
    "  blanks around,\n\tand within  ",
    "Käse, 日本語, emoji 🚂 and \u0000 a NUL",
    "word " * 200,
    "Which locomotive is the fastest of all?",
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(factory: TransformersFactory, minilm: Path) -> AsyncIterator[Engine]:
    async with running_engine(factory, spec_of(minilm, model_id="minilm")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def client(engine: Engine) -> AsyncIterator[Client]:
    async with client_of(engine) as client:
        yield client


@pytest.fixture(scope="module")
def reference(minilm: Path) -> SentenceTransformer:
    return SentenceTransformer(str(minilm), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})


def vectors(answer: dict[str, Any]) -> NDArray[np.float32]:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return np.array([item["embedding"] for item in answer["data"]], dtype=np.float32)


async def test_embeddings_equal_those_of_sentence_transformers(client: Client, reference: SentenceTransformer) -> None:
    answer = await client.ok("/v1/embeddings", model="minilm", input=TEXTS)
    np.testing.assert_allclose(vectors(answer), reference.encode(TEXTS), atol=1e-5)
    assert answer["object"] == "list"
    assert answer["model"] == "minilm"
    assert {item["object"] for item in answer["data"]} == {"embedding"}


async def test_usage_counts_every_token_that_the_model_reads(client: Client, reference: SentenceTransformer) -> None:
    answer = await client.ok("/v1/embeddings", model="minilm", input=TEXTS)
    tokens = sum(len(ids) for ids in reference.tokenizer(TEXTS)["input_ids"])
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


async def test_base64_holds_the_same_numbers_as_float(client: Client) -> None:
    floats = vectors(await client.ok("/v1/embeddings", input=TEXTS, encoding_format="float"))
    coded = await client.ok("/v1/embeddings", input=TEXTS, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in coded["data"]]
    np.testing.assert_allclose(np.array(decoded), floats, atol=1e-6)


async def test_a_string_and_a_list_of_one_get_the_same_answer(client: Client) -> None:
    one = vectors(await client.ok("/v1/embeddings", input=TEXTS[0]))
    same = vectors(await client.ok("/v1/embeddings", input=[TEXTS[0]]))
    np.testing.assert_array_equal(one, same)


async def test_token_ids_from_tokenize_give_the_embedding_of_their_text(client: Client) -> None:
    ids = [(await client.ok("/tokenize", prompt=text))["tokens"] for text in TEXTS[:2]]
    texts = vectors(await client.ok("/v1/embeddings", input=TEXTS[:2]))
    np.testing.assert_allclose(vectors(await client.ok("/v1/embeddings", input=ids)), texts, atol=1e-5)
    np.testing.assert_allclose(vectors(await client.ok("/v1/embeddings", input=ids[0])), texts[:1], atol=1e-5)


async def test_dimensions_shortens_and_scales_to_length_one(client: Client, reference: SentenceTransformer) -> None:
    answer = await client.ok("/v1/embeddings", input=TEXTS, dimensions=64)
    expected = reference.encode(TEXTS, truncate_dim=64, normalize_embeddings=True)
    np.testing.assert_allclose(vectors(answer), expected, atol=1e-5)


async def test_truncation_on_request_equals_the_model_s_own(client: Client, reference: SentenceTransformer) -> None:
    long = "locomotive " * 1000
    answer = await client.ok("/v1/embeddings", input=[long, "short"], truncate_prompt_tokens=-1)
    np.testing.assert_allclose(vectors(answer), reference.encode([long, "short"]), atol=1e-5)
    assert answer["usage"]["total_tokens"] == 256 + 3
    assert (await client.ok("/v1/embeddings", input=long, truncate_prompt_tokens=7))["usage"]["total_tokens"] == 7


async def test_an_input_over_the_model_s_length_is_refused_with_its_count(client: Client) -> None:
    error = await client.refused("/v1/embeddings", input=["short", "locomotive " * 1000])
    assert error["param"] == "input"
    assert error["code"] == "context_length_exceeded"
    assert "input[1] has 1002 tokens" in error["message"]
    assert "256" in error["message"]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "word " * 200_000, "日" * 330_000])
async def test_a_text_of_a_megabyte_is_answered_or_refused_in_time(client: Client, text: str) -> None:
    async with asyncio.timeout(20):
        status, _ = await client.post("/v1/embeddings", {"input": text})
        assert status in (200, 400)
        await client.ok("/v1/embeddings", input=text, truncate_prompt_tokens=-1)


async def test_sixteen_clients_at_once_each_get_their_own_embedding(
    client: Client, reference: SentenceTransformer
) -> None:
    texts = [f"Locomotive number {index} " + "puffs " * index for index in range(48)]
    answers = await asyncio.gather(*(client.ok("/v1/embeddings", input=text) for text in texts))
    np.testing.assert_allclose(
        np.concatenate([vectors(answer) for answer in answers]), reference.encode(texts), atol=1e-5
    )


async def test_two_thousand_and_forty_eight_inputs_are_taken_and_one_more_is_not(client: Client) -> None:
    assert len((await client.ok("/v1/embeddings", input=["a"] * 2048))["data"]) == 2048
    assert "2048" in (await client.refused("/v1/embeddings", input=["a"] * 2049))["message"]


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("input", {}),
        ("input", {"input": None}),
        ("input", {"input": ""}),
        ("input", {"input": []}),
        ("input", {"input": ["fine", ""]}),
        ("input", {"input": ["fine", 3]}),
        ("input", {"input": ["fine", None]}),
        ("input", {"input": {"text": "x"}}),
        ("input", {"input": 7}),
        ("input", {"input": True}),
        ("input", {"input": [[]]}),
        ("input", {"input": [[1, "x"]]}),
        ("input", {"input": [1, -1]}),
        ("input", {"input": [1, 2.5]}),
        ("input", {"input": [True]}),
        ("input", {"input": [30_522]}),
        ("input", {"input": [2**63]}),
        ("input", {"input": [[1, 2], "x"]}),
        ("dimensions", {"input": "x", "dimensions": 0}),
        ("dimensions", {"input": "x", "dimensions": 385}),
        ("dimensions", {"input": "x", "dimensions": 2**63}),
        ("dimensions", {"input": "x", "dimensions": "8"}),
        ("dimensions", {"input": "x", "dimensions": True}),
        ("encoding_format", {"input": "x", "encoding_format": "int8"}),
        ("encoding_format", {"input": "x", "encoding_format": ["float"]}),
        ("truncate_prompt_tokens", {"input": "x", "truncate_prompt_tokens": 0}),
        ("truncate_prompt_tokens", {"input": "x", "truncate_prompt_tokens": -2}),
        ("truncate_prompt_tokens", {"input": "x", "truncate_prompt_tokens": 257}),
        ("model", {"input": "x", "model": 5}),
    ],
)
async def test_a_wrong_value_is_refused_naming_its_field(client: Client, field: str, body: dict[str, object]) -> None:
    assert (await client.refused("/v1/embeddings", **body))["param"] == field


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"input"',
        b'{"input": NaN}',
        b'{"input": "\xff\xfe"}',
        b'{"input": "\\ud800"}',
        b'{"input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"input": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}",
    ],
)
async def test_a_body_that_is_no_json_object_is_refused_and_the_engine_lives(client: Client, data: bytes) -> None:
    status, answer = await client.post("/v1/embeddings", data=data)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    await client.ok("/v1/embeddings", input="still here")


async def test_fields_that_are_not_known_are_ignored(client: Client) -> None:
    await client.ok("/v1/embeddings", input="x", user="somebody", priority=0, dimensions=None, encoding_format=None)


async def test_an_embedder_asked_to_rerank_says_what_it_is(client: Client) -> None:
    error = await client.refused("/v1/rerank", query="q", documents=["d"])
    assert error["code"] == "wrong_model_task"
    assert "embedding model" in error["message"]


async def test_scores_of_an_embedder_are_cosine_similarities(client: Client, reference: SentenceTransformer) -> None:
    answer = await client.ok("/v1/score", text_1="a dog", text_2=["a puppy", "a stone"])
    expected = reference.similarity(reference.encode(["a dog"]), reference.encode(["a puppy", "a stone"]))[0]
    np.testing.assert_allclose([item["score"] for item in answer["data"]], expected.numpy(), atol=1e-5)


async def test_tokenize_and_detokenize_are_each_other_s_reverse(client: Client) -> None:
    answer = await client.ok("/tokenize", prompt="hello world", return_token_strs=True)
    assert answer["tokens"] == [101, 7592, 2088, 102]
    assert answer["count"] == 4
    assert answer["max_model_len"] == 256
    assert answer["token_strs"] == ["[CLS]", "hello", "world", "[SEP]"]
    plain = await client.ok("/tokenize", prompt="hello world", add_special_tokens=False)
    assert plain["tokens"] == [7592, 2088]
    assert await client.ok("/detokenize", tokens=[7592, 2088]) == {"prompt": "hello world"}


@pytest.mark.parametrize("body", [{}, {"tokens": "x"}, {"tokens": [1, -5]}, {"tokens": [2**40]}, {"tokens": [1.5]}])
async def test_detokenize_refuses_what_are_no_token_ids(client: Client, body: dict[str, object]) -> None:
    assert (await client.refused("/detokenize", **body))["param"] == "tokens"


async def test_unknown_paths_and_methods_get_the_envelope_too(client: Client) -> None:
    status, answer = await client.post("/v1/chat/completions", {})
    assert (status, answer["error"]["type"]) == (404, "invalid_request_error")
    async with client.session.get("http://engine/v1/embeddings") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"


async def test_health_and_models_answer(client: Client) -> None:
    async with client.session.get("http://engine/health") as response:
        assert (response.status, await response.read()) == (200, b"")
    async with client.session.get("http://engine/v1/models") as response:
        card = (await response.json())["data"][0]
    assert (card["id"], card["max_model_len"]) == ("minilm", 256)
